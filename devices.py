"""What a command runs on: the threads of the CPU, the memory of a GPU, the precision of products, the replicas."""

import os

import cli

with cli.quiet():
    import keras
    import tensorflow as tf

# The branches of a block run side by side, each on half of the cores: faster than one after the other on all of them.
# (TensorFlow reads this when it first computes something, not when it is imported.)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, CORES // 2)))


def prepare(mixed_precision: bool) -> tuple[str, bool]:
    """Sets the precision of products and lets GPU memory grow as needed.

    Returns:
      The device's name, and whether it is a GPU, for which compiling with XLA pays.
    """
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed_precision else "float32")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else f"CPU, {CORES} cores"
    return name, bool(gpus)


def split_rows(value, axis: int = 0):
    """Gives each replica of the strategy in force its rows of a tensor, which lie along `axis`."""
    strategy = tf.distribute.get_strategy()
    parts = tf.split(value, strategy.num_replicas_in_sync, axis=axis)
    return strategy.experimental_distribute_values_from_function(lambda context: parts[context.replica_id_in_sync_group])
