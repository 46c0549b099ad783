"""Continues text with the network of a run.

    python generate.py --run=logs/supernet --prompt="The history of"
    python generate.py --run=logs/supernet --temperature=0.8 --top_p=0.95
"""

import itertools
import sys
from typing import Iterator

from absl import flags

from support import cli
from support.errors import InputError
from training import run_flags


def define_flags():
    run_flags.define_run()
    run_flags.define_checkpoint()
    flags.DEFINE_string("prompt", None, "the text to continue (default: each line that you type)")
    flags.DEFINE_integer("num_tokens", 100, "tokens to write", lower_bound=1)
    flags.DEFINE_float("temperature", 1.0, "values below 1 favour likely tokens; 0 always "
                       "takes the most likely one", lower_bound=0)
    flags.DEFINE_integer("top_k", 0, "sample from the k most likely tokens; 0: from all",
                         lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "sample from the most likely tokens whose probabilities add "
                       "up to p", lower_bound=1e-6, upper_bound=1)
    flags.DEFINE_integer("num_samples", 1, "continuations of each prompt", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the first continuation; each further one adds 1",
                         lower_bound=0)


cli.begin(__name__, define_flags)

with cli.quiet():
    from training.trained_run import TrainedRun


def lines() -> Iterator[str]:
    """The lines typed on standard input, without blank ones.

    Raises:
      InputError: a line is not UTF-8.
    """
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError:
            raise InputError("the prompt is not UTF-8") from None
        if line.strip():
            yield line


def main(_):
    FLAGS = flags.FLAGS
    language_model = TrainedRun(FLAGS.run, FLAGS.checkpoint).language_model
    seeds = itertools.count(FLAGS.seed)
    for prompt in lines() if FLAGS.prompt is None else [FLAGS.prompt]:
        _, unknown = language_model.encode(prompt)
        if unknown:
            print(f"{unknown:,} characters of the prompt are unknown to the tokenizer",
                  file=sys.stderr)
        for _ in range(FLAGS.num_samples):
            texts = language_model.stream(
                prompt, FLAGS.num_tokens, FLAGS.temperature, FLAGS.top_k, FLAGS.top_p,
                next(seeds) % 2**31)
            for text in texts:
                print(text, end="", flush=True)
            print()


if __name__ == "__main__":
    cli.run(main)
