"""Random numbers that depend only on their key, so that runs resume exactly."""

import math

import tensorflow as tf

PHILOX = 1  # TensorFlow's id of the algorithm
PHILOX_HALVES = 8  # 16-bit numbers per value of Philox's counter


class Draws:
    """Random numbers keyed by (seed, step, place): the same key always gives the same numbers.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as key.
    Step and place form the upper half of its counter; the numbers within a draw count up in the
    lower half. If a batch is split into shares, for replicas or one after another, each share draws
    its part of the numbers for the whole batch.

    Args:
      seed: below 2^31.
      step: the training step, an integer tensor below 2^31.
      share, shares: the number of this share, and how many equal shares the batch has.
    """

    def __init__(self, seed: int, step, share=0, shares: int = 1):
        self._seed, self._step = seed, tf.cast(step, tf.int64)
        self._share, self._shares = tf.cast(share, tf.int64), shares

    def gumbel(self, shape):
        """Gumbel(0, 1) noise, float32; the same in all shares, which train one architecture."""
        uniform = (tf.cast(self._bits(shape, place=0), tf.float64) + 0.5) / 2**32
        return tf.cast(-tf.math.log(-tf.math.log(uniform)), tf.float32)

    def gumbel_rows(self, rows: int, shape):
        """Gumbel(0, 1) noise for each row of this share, float32 [rows, *shape]."""
        return tf.gather(self.gumbel([self._shares, rows, *shape]), self._share)

    def dropout_mask(self, place: int, shape, rate: float):
        """A dropout mask: boolean, true with probability 1 - `rate`, to 16 bits.

        Every use in the network has its own `place`. Unless `PHILOX_HALVES` divides the number of
        elements of a share, the shares draw different masks from those of the whole batch.
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
