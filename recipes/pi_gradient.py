"""Measures the gradient of theta in a search, and its noise.

    python -m recipes.pi_gradient --run=logs/supernet

Each window of the training split gives a gradient, at fixed weights. The gradients scatter around
their mean because each window has its own text and its own sample of architecture and dropout. Per
step, Adam moves theta by about the learning rate times mean / sqrt(mean^2 + variance). That factor
is the last column; without noise it is 1.

S searched blocks, K layer types, N windows.
"""

import numpy as np
from absl import flags

from support import cli
from training import run_flags


def define_flags():
    run_flags.define_run("the folder of a search")
    run_flags.define_checkpoint()
    flags.DEFINE_integer("num_windows", 300, "N", lower_bound=2)
    flags.DEFINE_multi_float("tau", [1.0, 0.3, 0.1], "a temperature; repeat the flag for several",
                             lower_bound=1e-3)
    run_flags.define_data_dir()


cli.begin(__name__, define_flags)

with cli.quiet():
    import tensorflow as tf

    import data_utils
    from layers.draws import Draws
    from training.scoring import filled_memory, window_nll
    from training.trained_run import TrainedRun


def theta_gradients(model, windows, tau: float, seed: int = 0) -> np.ndarray:
    """The gradient of the mean loss of each of N windows with respect to theta: [N, S, K]."""
    @tf.function
    def gradient_and_memory(window, memory, number):
        draws = Draws(seed, number)
        filled = filled_memory(model, window, number)
        with tf.GradientTape() as tape:
            nll, memory = window_nll(model, window, memory, filled, tau, draws)  # [B, T]
            loss = tf.reduce_mean(nll)  # []
        gradient, = tape.gradient(loss, [model.theta])  # [S, K]
        return gradient, memory

    gradients, memory = [], None
    for number, window in enumerate(windows):
        memory = model.empty_memory(len(window)) if memory is None else memory
        gradient, memory = gradient_and_memory(tf.constant(window), memory, tf.constant(number))
        gradients.append(gradient.numpy())
    return np.array(gradients)


def size_noise_and_step(gradients: np.ndarray) -> tuple[float, float, float]:
    """Statistics of gradients [N, S, K], as root mean squares over the S K entries.

    Returns:
      The size of the mean gradient, corrected for the noise in a mean of N; the standard deviation
      of one gradient; and the step of Adam as a fraction of the learning rate.
    """
    variance = gradients.var(axis=0, ddof=1)  # [S, K]
    squared = gradients.mean(axis=0)**2 - variance / len(gradients)  # [S, K]
    size, noise = max(0, squared.mean())**0.5, variance.mean()**0.5
    return size, noise, size / np.hypot(size, noise)


def main(_):
    FLAGS = flags.FLAGS
    run = TrainedRun(FLAGS.run, FLAGS.checkpoint)
    data_dir, metadata = run.find_data(FLAGS.data_dir)
    model, step = run.search()
    taus = FLAGS.tau if model.log_tau is None else [float(model.temperature())]
    windows = data_utils.load_windows(data_dir, "train", metadata).take(FLAGS.num_windows)
    windows = list(windows.as_numpy_iterator())
    print(f"{run.folder.name}, step {step:,}: gradient of theta over {len(windows)} windows")
    print("tau    draws          mean gradient  its noise  Adam's step / learning rate")
    for tau in taus:
        for per_row in (False, True):
            model.gumbel_per_row = per_row
            size, noise, moved = size_noise_and_step(theta_gradients(model, windows, tau))
            draws = "one for a row" if per_row else "one for all"
            print(f"{tau:<5.2f}  {draws:13}  {size:13.5f}  {noise:9.5f}  {moved:27.3f}")


if __name__ == "__main__":
    cli.run(main)
