"""Times output layers, and the training step with each, in turn in one process.

    python -m recipes.compare_outputs --output=none --output="250,2500 4" --output="250,2500 1 tied"

An output layer is its cutoffs, or none; its proj_factor; and whether its rows are tied to the
input. The network is adadad, in bfloat16 as in the recipes. The layer runs forward and backward,
for the tokens of one step, with targets as frequent as in the data.
"""

import re
from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError
from training.settings import Settings

DATA_DIR = cli.define_path("data_dir", "data/tfrecords", "what make_data.sh made")
OUTPUT = flags.DEFINE_multi_string(
    "output", ["250,2500 4", "250,2500 1 tied"], "cutoffs, proj_factor, tied; repeat it to compare")
ROUNDS = flags.DEFINE_integer("rounds", 9, "how often each is measured", lower_bound=1)
cli.begin(__name__)

with cli.quiet():
    import data_utils
    from cutoffs import layer_step
    from layers import from_letters
    from support import devices
    from support.timing import seconds
    from training.trainer import Trainer

STEPS = 5  # of training, in one measurement


def settings_of(output: str) -> Settings:
    """The settings of a network with an output layer, given as --output.

    Raises:
      InputError: it is not written like one.
    """
    match = re.fullmatch(r"(none|[\d,]+)(?: (\d+))?( tied)?", output)
    if not match:
        raise InputError(f"--output='{output}' must be cutoffs or none; a proj_factor; tied")
    cutoffs = [] if match[1] == "none" else cli.IntegersParser().parse(match[1])
    return Settings(architecture=from_letters("adadad"), cutoffs=cutoffs,
                    proj_factor=int(match[2] or Settings.proj_factor),
                    tie_embeddings=bool(match[3]))


def main(_):
    device, jit_compile = devices.prepare(mixed_precision=True)
    data_dir = Path(DATA_DIR.value)
    metadata = data_utils.read_metadata(data_dir)
    counts = data_utils.read_counts(data_dir / "unigram_counts.txt")
    tokens = metadata["batch_size"] * metadata["seq_len"]
    probability = counts / counts.sum()  # [V]
    targets = np.random.default_rng(0).choice(len(counts), tokens, p=probability)  # [N]
    trainers = [Trainer(data_dir, metadata, settings_of(output), jit_compile)
                for output in OUTPUT.value]
    layers = [layer_step(trainer.model.softmax, targets) for trainer in trainers]
    for trainer, layer in zip(trainers, layers):  # the first call builds the graph
        trainer.train(STEPS)
        layer()
    layer_times, step_times = [], []  # [rounds, outputs]
    for _ in range(ROUNDS.value):
        layer_times.append([seconds(layer) for layer in layers])
        step_times.append([trainer.train(STEPS) / STEPS for trainer in trainers])
    print(f"{device}, {tokens:,} tokens a step, medians of {ROUNDS.value}")
    print("output                    parameters  ms of the layer  ms of the step")
    medians = [1e3 * np.median(times, axis=0) for times in (layer_times, step_times)]
    for output, trainer, layer, step in zip(OUTPUT.value, trainers, *medians):
        print(f"{output:24}  {trainer.model.count_params():10,}  {layer:15.1f}  {step:14.1f}")


if __name__ == "__main__":
    cli.run(main)
