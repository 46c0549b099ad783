"""The devices of a command: CPU threads, GPU memory, precision, replicas."""

import contextlib
import json
import os

from support import cli

with cli.quiet():
    import keras
    import tensorflow as tf

from support.errors import InputError

# The branches of a block run in parallel, each on half of the cores: faster than one after another
# on all cores. TensorFlow reads these at its first computation, not at import.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, cli.CORES // 2)))


def prepare(mixed_precision: bool) -> tuple[str, bool]:
    """Sets the precision of matrix products and lets GPU memory grow.

    Returns the name of the device, and whether it is a GPU, on which XLA is faster.
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
    """The Keras policy for matrix products: bfloat16 if requested and supported by the GPUs."""
    supported = has_bfloat16(usable_gpus())  # also when not requested: it makes memory grow
    return "mixed_bfloat16" if mixed_precision and supported else "float32"


def has_bfloat16(gpus: list) -> bool:
    """Whether all GPUs support bfloat16: NVIDIA's do from compute capability 8.0 (Ampere) on."""
    details = map(tf.config.experimental.get_device_details, gpus)
    return all(each.get("compute_capability", (8, 0)) >= (8, 0) for each in details)


def usable_gpus() -> list:
    """The GPUs of this machine. Their memory grows as needed, unless already in use."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # in use
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def strategy(distribute: str) -> tf.distribute.Strategy:
    """The strategy of the replicas that train together.

    Args:
      distribute: `none` (one replica), `mirrored` (all devices of this machine), `multi_worker`
        (all GPUs of the machines in the environment variable TF_CONFIG), or `auto`.

    Raises:
      InputError: TF_CONFIG does not describe a cluster.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if distribute == "auto":
        distribute = "mirrored" if len(gpus) > 1 else "none"
        if '"worker"' in os.environ.get("TF_CONFIG", ""):  # rather than a chief alone
            distribute = "multi_worker"
    if distribute == "none":
        return tf.distribute.get_strategy()
    if distribute == "mirrored":
        devices = tf.config.list_logical_devices("GPU" if gpus else "CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    try:
        workers = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
        # The sum fails if the task or the workers are missing or of the wrong type.
        tf.distribute.cluster_resolver.TFConfigClusterResolver().task_id + len(workers)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            "--distribute=multi_worker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, '
            '"task": {"type": "worker", "index": 0}}; or --distribute=none') from None
    return tf.distribute.MultiWorkerMirroredStrategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the folder of the run."""
    return strategy.extended.should_checkpoint


def split_rows(strategy: tf.distribute.Strategy, value, axis: int = 0):
    """Gives each replica its rows of a tensor; rows are along `axis`."""
    parts = tf.split(value, strategy.num_replicas_in_sync, axis=axis)
    rows = strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group])
    own = strategy.experimental_local_results(rows)
    return rows if len(own) > 1 else own[0]  # as `strategy.run` returns it for one replica


@tf.function
def gather_rows(strategy: tf.distribute.Strategy, rows, axis: int = 0):
    """Joins the rows of all replicas on every worker."""
    return strategy.gather(rows, axis)


def all_reduce_max(strategy: tf.distribute.Strategy, *numbers: float) -> list[float]:
    """The maximum of each number over all workers, which must all call this at the same point."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return list(numbers)
    own = strategy.num_replicas_in_sync * [tf.constant([numbers], tf.float64)]  # [1, numbers] each
    rows = split_rows(strategy, tf.concat(own, axis=0))
    return gather_rows(strategy, rows).numpy().max(axis=0).tolist()


def check_agreement(strategy: tf.distribute.Strategy, number: int, disagreement: str):
    """Raises InputError unless all workers give the same number."""
    most, least = all_reduce_max(strategy, number, -number)
    if most != -least:
        raise InputError(f"the workers {disagreement}")
