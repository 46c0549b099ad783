"""Times the output layer and the training step with several cutoffs, in turn in one process.

    python -m recipes.compare_cutoffs --cutoffs= --cutoffs=250,2500 --cutoffs=31,810

The network is the default experiment but for the cutoffs. The layer runs forward and backward, for
the tokens of one step, with targets as frequent as in the data.
"""

from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from training.settings import Settings

DATA_DIR = cli.define_path("data_dir", "data/tfrecords", "what make_data.sh made")
CUTOFFS = flags.DEFINE_multi_string(
    "cutoffs", ["", "250,2500"], "comma-separated, or nothing for none; repeat it to compare")
ROUNDS = flags.DEFINE_integer("rounds", 9, "how often each is measured", lower_bound=1)
cli.begin(__name__)

with cli.quiet():
    import data_utils
    from cutoffs import layer_step
    from support import devices
    from support.timing import seconds
    from training.trainer import Trainer

STEPS = 5  # of training, in one measurement


def main(_):
    device, jit_compile = devices.prepare(mixed_precision=False)
    data_dir = Path(DATA_DIR.value)
    metadata = data_utils.read_metadata(data_dir)
    counts = data_utils.read_counts(data_dir / "unigram_counts.txt")
    tokens = metadata["batch_size"] * metadata["seq_len"]
    probability = counts / counts.sum()  # [V]
    targets = np.random.default_rng(0).choice(len(counts), tokens, p=probability)  # [N]
    trainers, layers = [], []
    for text in CUTOFFS.value:
        settings = Settings(cutoffs=cli.IntegersParser().parse(text))
        trainer = Trainer(data_dir, metadata, settings, jit_compile)
        trainers.append(trainer)
        layers.append(layer_step(trainer.model.softmax, targets))
    for trainer, layer in zip(trainers, layers):  # the first call builds the graph
        trainer.train(STEPS)
        layer()
    layer_times, step_times = [], []  # [rounds, cutoffs]
    for _ in range(ROUNDS.value):
        layer_times.append([seconds(layer) for layer in layers])
        step_times.append([trainer.train(STEPS) / STEPS for trainer in trainers])
    print(f"{device}, {tokens:,} tokens a step, medians of {ROUNDS.value}")
    print("cutoffs                   ms of the layer  ms of the step")
    medians = [1e3 * np.median(times, axis=0) for times in (layer_times, step_times)]
    for text, layer, step in zip(CUTOFFS.value, *medians):
        print(f"{text or 'none':24}  {layer:15.1f}  {step:14.1f}")


if __name__ == "__main__":
    cli.run(main)
