"""Exports the network of a run, with its tokenizer, as a SavedModel with signatures for text.

    python export.py --run=logs/supernet
    python export.py --run=logs/supernet --architecture=found --half --output_dir=serving/par/1

Loading it requires tensorflow and tensorflow-text, but not this repository: docs/python.md.
"""

import os
import sys
from pathlib import Path

from absl import flags

from support import cli
from support.errors import InputError
from training import run_flags


def define_flags():
    run_flags.define_run()
    run_flags.define_checkpoint()
    run_flags.define_subnetwork()
    cli.define_path("output_dir", None, "the folder of the SavedModel; an earlier export there is "
                    "replaced (default: saved_model in the folder of the run)")
    flags.DEFINE_boolean("half", False, "store the weights as float16")


cli.begin(__name__, define_flags)

with cli.quiet():
    import tensorflow as tf

    from layers import as_letters
    from support import files, output_folder
    from support.versions import versions
    from training.saved_model import signatures
    from training.trained_run import TrainedRun

RECORD = "export.json"


def save(run: TrainedRun, architecture: str | None, dtype: tf.DType, output_dir: Path) -> str:
    """Writes the SavedModel of `run.network(architecture)`, with its weights stored as `dtype`.

    Returns:
      The architecture of the network as letters.

    Raises:
      InputError: `output_dir` holds other files, a link in the folder of the run could lead out of
        it, or a weight is too large for `dtype`.
    """
    files.check_no_pattern(output_dir)
    if Path(os.path.abspath(run.folder)) in Path(os.path.abspath(output_dir)).parents:
        files.refuse_links(run.folder)
    output_folder.check_replaceable(output_dir, RECORD)
    model, step = run.network(architecture)
    for weight in model.weights:
        if not tf.reduce_all(tf.math.is_finite(tf.cast(weight.value, dtype))):
            raise InputError(f"{weight.path} is too large for {dtype.name}: export without --half")
    module, functions = signatures(run.language_model_of(model), dtype)
    with output_folder.replaced(output_dir) as workspace:
        folder = workspace / "new"
        with files.named(output_dir):
            tf.saved_model.save(module, str(folder), functions)
        files.write_json(folder / RECORD, {
            "run": str(run.folder), "step": step, "architecture": as_letters(model.architecture),
            "weights": dtype.name, "versions": versions(),
            "sha256": output_folder.hashes(folder)})
    return as_letters(model.architecture)


def main(_):
    FLAGS = flags.FLAGS
    run = TrainedRun(FLAGS.run, FLAGS.checkpoint)
    output_dir = Path(FLAGS.output_dir or run.folder / "saved_model")
    saved = save(run, FLAGS.architecture, tf.float16 if FLAGS.half else tf.float32, output_dir)
    megabytes = sum(path.stat().st_size for path in output_dir.rglob("*") if path.is_file()) / 1e6
    network = "the mixture of a search" if "s" in saved else f"the layers {saved}"
    print(f"wrote {output_dir}: {network}, {megabytes:.1f} MB")
    if saved != run.flags["architecture"]:
        print("these layers were trained within the mixture, so expect a higher loss; "
              "to train them alone: "
              f"./train.sh --model_name={run.folder.name}_{saved} --architecture={saved} "
              f"--init_from={run.folder}",
              file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
