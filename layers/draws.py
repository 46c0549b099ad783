"""Random numbers that depend on their key alone, so that a run resumes exactly."""

import math

import tensorflow as tf

PHILOX = 1  # TensorFlow's number of the algorithm
PHILOX_HALVES = 8  # 16-bit numbers that one count of Philox gives


class Draws:
    """Random numbers keyed by (seed, step, place): the same key always gives the same numbers.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as key;
    step and place are the upper half of its counter, and the numbers of one draw run through the
    lower half. Where a batch is cut into shares, for replicas or one after another, each draws its
    part of what the whole batch would draw.

    Args:
      seed: below 2^31.
      step: of training, an integer tensor below 2^31.
      share, shares: which of how many equal shares of the rows of a batch this is.
    """

    def __init__(self, seed: int, step, share=0, shares: int = 1):
        self._seed, self._step = seed, tf.cast(step, tf.int64)
        self._share, self._shares = tf.cast(share, tf.int64), shares

    def gumbel(self, shape):
        """Gumbel(0, 1) noise, float32; the same for all shares: they agree on the architecture."""
        uniform = (tf.cast(self._bits(shape, place=0), tf.float64) + 0.5) / 2**32
        return tf.cast(-tf.math.log(-tf.math.log(uniform)), tf.float32)

    def gumbel_rows(self, rows: int, shape):
        """Gumbel(0, 1) noise for each row of this share, float32 [rows, *shape]."""
        return tf.gather(self.gumbel([self._shares, rows, *shape]), self._share)

    def dropout_mask(self, place: int, shape, rate: float):
        """A dropout mask: boolean, true with probability 1 - `rate`, to 16 bits.

        Every `place` of the network has its own number. Where the elements of a share are not
        divisible by `PHILOX_HALVES`, the shares draw other masks than the whole batch would.
        """
        size = math.prod(shape)
        counts = -(-size // PHILOX_HALVES)
        pairs = self._bits([(size + 1) // 2], place + 1, skip=self._share * counts)
        bits = tf.reshape(tf.bitcast(pairs, tf.uint16), [-1])[:size]
        least = min(round(rate * 2**16), 2**16 - 1)
        return tf.reshape(bits, shape) >= tf.constant(least, tf.uint16)

    def _bits(self, shape, place, skip=0):
        """Random uint32 numbers."""
        counter = tf.stack([tf.cast(skip, tf.int64), self._step * 2**32 + place])
        return tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=shape, key=tf.cast([self._seed], tf.uint64),
            counter=tf.cast(counter, tf.uint64), alg=PHILOX, dtype=tf.uint32)
