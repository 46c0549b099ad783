"""Matrix products in the precision of their input, and gradients written out for speed.

N rows, I inputs and O outputs of a kernel, D model width.
"""

import tensorflow as tf


def linear(x, kernel, transpose_b=False):
    """x [..., I] times kernel [I, O], or [O, I] if transposed, in the precision of x: [..., O]."""
    flat = tf.reshape(x, [-1, x.shape[-1]])  # [N, I]
    flat = tf.matmul(flat, tf.cast(kernel, x.dtype), transpose_b=transpose_b)  # [N, O]
    return tf.reshape(flat, [*x.shape[:-1], flat.shape[-1]])


@tf.custom_gradient
def layer_norm(x, scale, offset):
    """Layer normalisation (Ba et al. 2016, equation 4), float32.

    With normal = (x - mean) / deviation and g = dy scale, the gradient is
    (g - mean(g) - normal mean(g normal)) / deviation: half the operations of automatic
    differentiation. Means over D are matrix-vector products.

    Args:
      x: [N, D].
      scale, offset: [D].

    Returns:
      [N, D].
    """
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)  # [N, D]
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)  # [N, 1]
    inverse_deviation = tf.math.rsqrt(variance + 1e-5)  # [N, 1]
    normal = centred * inverse_deviation  # [N, D]

    def gradient(dy):
        dy_normal = dy * normal  # [N, D]
        averaging = scale[:, None] / x.shape[-1]  # [D, 1]: dy times this is the mean of g
        mean_g = tf.matmul(dy, averaging)  # [N, 1]
        mean_g_normal = tf.matmul(dy_normal, averaging)  # [N, 1]
        dx = (dy * scale - mean_g - normal * mean_g_normal) * inverse_deviation  # [N, D]
        dscale = tf.raw_ops.BiasAddGrad(out_backprop=dy_normal)  # [D], the sum over N
        doffset = tf.raw_ops.BiasAddGrad(out_backprop=dy)  # [D]
        return dx, dscale, doffset

    return normal * scale + offset, gradient


@tf.custom_gradient
def linear_cross_entropy(x, rows, bias, labels):
    """The negative log-likelihood of labels under softmax(x rows^T + bias).

    Needs few passes over the logits: their gradient, (p - onehot) dy, is never materialized. dy
    multiplies the narrow matrices instead, and onehot becomes a lookup in them.

    Args:
      x: float32 [N, I].
      rows: float32 [O, I].
      bias: float32 [O].
      labels: int32 [N], below O.

    Returns:
      float32 [N], in nats.
    """
    logits = tf.nn.bias_add(tf.matmul(x, rows, transpose_b=True), bias)  # [N, O]
    p = tf.nn.softmax(logits)  # [N, O]
    log_normaliser = tf.reduce_max(logits, axis=1) - tf.math.log(tf.reduce_max(p, axis=1))  # [N]
    label_logits = tf.gather(logits, labels, axis=1, batch_dims=1)  # [N]

    def gradient(dy):
        dy = dy[:, None]  # [N, 1]
        x_dy = x * dy  # [N, I]
        dx = (tf.matmul(p, rows) - tf.gather(rows, labels)) * dy  # [N, I]
        drows = tf.matmul(p, x_dy, transpose_a=True)  # [O, I]
        drows -= tf.math.unsorted_segment_sum(x_dy, labels, rows.shape[0])  # [O, I]
        dbias = tf.matmul(p, dy, transpose_a=True)  # [O, 1]
        dbias -= tf.math.unsorted_segment_sum(dy, labels, rows.shape[0])  # [O, 1]
        return dx, drows, dbias[:, 0], None

    return log_normaliser - label_logits, gradient
