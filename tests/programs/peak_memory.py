"""Prints the most bytes that a process has which trains, and what the formula says.

python tests/programs/peak_memory.py [flags of bench.py]
"""

import re
import sys
import tempfile
from pathlib import Path

from absl import flags

import bench
from training import costs
from training.settings import settings_of_flags
from training.trainer import Trainer

bench.define_flags()
flags.FLAGS(sys.argv)
with tempfile.TemporaryDirectory() as folder:
    metadata, probability = bench.zipf_data(Path(folder), bench.BATCH_SIZE.value)
    trainer = Trainer(Path(folder), metadata, settings_of_flags(bench.architecture()))
    trainer.train(2)
status = Path("/proc/self/status").read_text()  # getrusage would tell of the parent too
peak = 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
sizes = bench.BATCH_SIZE.value, bench.SEQ_LEN.value
print(peak, costs.training_memory(trainer.model, *sizes, probability))
