"""Trains with several replicas on this machine's CPU.

    mirrored.py DATA_DIR REPLICAS '[[changes of the settings, jit_compile], ...]' [DEVICE]

With a DEVICE, one of as many as there would be replicas, it trains on that alone. Prints a line of
JSON for each of the ways: the losses of every five of 100 steps and of the validation, or the error
that ended them; numbers of the state in the end, and the step.
"""

import json
import sys
from pathlib import Path

import tensorflow as tf

data_dir, replicas, ways = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
device = sys.argv[4] if len(sys.argv) > 4 else None
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)

import data_utils  # noqa: E402
from support import devices  # noqa: E402
from training.settings import Settings  # noqa: E402
from training.trainer import Trainer  # noqa: E402

strategy = devices.strategy("mirrored") if replicas > 1 and not device else None
for changes, jit_compile in ways:
    with tf.device(device):
        metadata = data_utils.read_metadata(data_dir)
        trainer = Trainer(data_dir, metadata, Settings(**changes), jit_compile, strategy)
        trainer.state.latency.assign([3.0, 2.0, 1.0])
        losses, numbers = [], trainer.model.pi().ravel().tolist()
        try:
            for _ in range(20):
                trainer.train(5)
                losses.append(trainer.end_line()[0])
            losses.append(trainer.evaluate("valid")["loss"])
            trainer.complete_state()
            memory = float(abs(trainer.state.memory.numpy()).sum())
            numbers = [*trainer.model.pi().ravel().tolist(), memory]
        except FloatingPointError as error:
            losses = [str(error)]
    print(json.dumps([losses, numbers, trainer.step]), flush=True)
