"""What a command runs on: the CPU's threads, a GPU's memory, the precision, the replicas."""

import contextlib
import json
import os

from support import cli

with cli.quiet():
    import keras
    import tensorflow as tf

from support.cli import InputError

# The branches of a block run side by side, each on half of the cores: faster than one after the
# other on all of them. (TensorFlow reads this when it first computes something, not when it is
# imported.)
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, cli.CORES // 2)))


def prepare(mixed_precision: bool) -> tuple[str, bool]:
    """Sets the precision of products, and what `usable_gpus` does.

    Returns:
      The device's name, and whether it is a GPU, for which compiling with XLA pays.
    """
    keras.config.set_dtype_policy(dtype_policy(mixed_precision))
    gpus = usable_gpus()
    if not gpus:
        return f"CPU, {cli.CORES} cores", False
    details = tf.config.experimental.get_device_details(gpus[0])
    name = details.get("device_name", "GPU")
    if mixed_precision and not has_bfloat16(gpus):
        name += ", in float32: it has no bfloat16, which --mixed_precision needs"
    return name, True


def dtype_policy(mixed_precision: bool) -> str:
    """Keras' name for the precision of products: bfloat16 if asked for and the GPUs have it."""
    return "mixed_bfloat16" if mixed_precision and has_bfloat16(usable_gpus()) else "float32"


def has_bfloat16(gpus: list) -> bool:
    """Whether all GPUs multiply in bfloat16: NVIDIA's do from compute capability 8.0 (Ampere)."""
    details = map(tf.config.experimental.get_device_details, gpus)
    return all(each.get("compute_capability", (8, 0)) >= (8, 0) for each in details)


def usable_gpus() -> list:
    """The GPUs of this machine. Their memory grows as needed, unless they are in use already."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # it is in use
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def strategy(distribute: str) -> tf.distribute.Strategy:
    """The replicas that train together.

    They are one, by TensorFlow's default strategy, or as many as there are GPUs, here or on all the
    machines that the environment variable TF_CONFIG names.

    Args:
      distribute: `none`, `mirrored` (the devices of this machine), `multi_worker` (TF_CONFIG), or
        `auto`, whichever fits.

    Raises:
      InputError: there is no TF_CONFIG that tells the machines.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if distribute == "auto":
        distribute = "mirrored" if len(gpus) > 1 else "none"
        if '"worker"' in os.environ.get("TF_CONFIG", ""):  # not of a chief alone, or of nobody
            distribute = "multi_worker"
    if distribute == "none":
        return tf.distribute.get_strategy()
    if distribute == "mirrored":
        devices = tf.config.list_logical_devices("GPU" if gpus else "CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    try:
        workers = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
        tf.distribute.cluster_resolver.TFConfigClusterResolver().task_id + len(workers)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            "--distribute=multi_worker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, '
            '"task": {"type": "worker", "index": 0}}; or --distribute=none') from None
    return tf.distribute.MultiWorkerMirroredStrategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes."""
    return strategy.extended.should_checkpoint


def split_rows(strategy: tf.distribute.Strategy, value, axis: int = 0):
    """Gives each replica its rows of a tensor, which lie along `axis`."""
    parts = tf.split(value, strategy.num_replicas_in_sync, axis=axis)
    rows = strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group])
    own = strategy.experimental_local_results(rows)
    return rows if len(own) > 1 else own[0]  # as `strategy.run` gives it back for one replica


@tf.function
def gather_rows(strategy: tf.distribute.Strategy, rows, axis: int = 0):
    """The whole of what each replica has its rows of, on every worker."""
    return strategy.gather(rows, axis)


def all_reduce_max(strategy: tf.distribute.Strategy, *numbers: float) -> list[float]:
    """Each number, the greatest that any worker gives for it.

    All workers must call this at the same point of the program.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return list(numbers)
    own = strategy.num_replicas_in_sync * [tf.constant([numbers], tf.float64)]  # [1, numbers] each
    rows = split_rows(strategy, tf.concat(own, axis=0))
    return gather_rows(strategy, rows).numpy().max(axis=0).tolist()


def check_agreement(strategy: tf.distribute.Strategy, number: int, disagreement: str):
    """Raises InputError where the workers do not all give the same number."""
    most, least = all_reduce_max(strategy, number, -number)
    if most != -least:
        raise InputError(f"the workers {disagreement}")
