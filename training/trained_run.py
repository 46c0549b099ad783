"""What a training has left in its folder, logs/<model_name>, for those who use the network.

N tokens of a text, T sequence length, M memory length, D model width, H heads, L blocks, A of which
attend, K kinds of layer.
"""

import functools
import sys
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from support import cli

with cli.quiet():
    import keras
    import tensorflow as tf
    from keras.src.backend.common import global_state

import data_utils
from layers import KINDS, SEARCH, as_letters, letters
from layers.kind import Sizes
from model import PARTransformerXL
from support import devices, events, files
from support.checkpoints import Checkpoints, by_path
from support.cli import InputError
from support.tokenization import Tokenizer
from training import schema
from training.language_model import LanguageModel
from training.writer import EMPTY_PROMPT

TEXT = tf.TensorSpec([], tf.string)
MOST_TOKENIZER = 1 << 28  # bytes


class TrainedRun:
    """The folder of a run, and the network in it.

        run = TrainedRun("logs/supernet")
        tokens, log_prob = run.log_prob("The king was dead.")
        print(run.generate("The history of", num_tokens=50, temperature=0.8, seed=1))

    Args:
      folder: where it is.
      checkpoint: whose network it is: `best` (the lowest validation loss), `latest`, or the step of
        one that is there.

    Attributes:
      folder, checkpoint: as given.
      flags: with which train.py was started.
      data: on what it was trained.

    Raises:
      InputError: it holds no run, or a damaged one.
    """

    def __init__(self, folder: str | Path, checkpoint: str | int = "best"):
        self.folder, self.checkpoint = Path(folder), str(checkpoint)
        self._config = read_config(self.folder)
        self.flags, self.data = self._config["flags"], self._config["data"]
        self._run_id = self._config["run_id"]

    @property
    def architecture(self) -> str:
        """A letter for the most likely kind of each block, once the run has finished."""
        path = self.folder / "results.json"
        try:
            results = files.read_json(path, ["architecture", "run_id"])
        except FileNotFoundError:
            raise InputError(f"{self.folder} has no results.json: it has not finished") from None
        found, blocks = results["architecture"], self._config["model"]["architecture"]
        if results["run_id"] != self._run_id:
            raise InputError(f"{path} belongs to another run")
        is_architecture = schema.FLAGS["architecture"](found) and "s" not in found
        if not is_architecture or not could_become(blocks, found):
            raise InputError(f"{path} is no result: architecture cannot be {schema.shown(found)}")
        return found

    @property
    def pi(self) -> np.ndarray:
        """The probability of each kind of layer in each block, [L, K]."""
        return self.model.pi()

    @property
    def sizes(self) -> Sizes:
        """The sizes of the network: D, H, F and M."""
        return self.model.sizes

    @functools.cached_property
    def model(self) -> PARTransformerXL:
        """The network, with its trained temperature.

        Raises:
          InputError: as `network`.
        """
        return self.network(static_shapes=self._on_gpu)[0]

    def search(self) -> tuple[PARTransformerXL, int]:
        """`network`, of a search.

        Raises:
          InputError: as `network`, or its architecture is fixed.
        """
        model, step = self.network()
        if SEARCH not in model.architecture:
            raise InputError(f"{self.folder} is no search: its architecture is fixed")
        return model, step

    def find_data(self, data_dir: Path | None = None) -> tuple[Path, dict]:
        """The folder of its data, None for where they were in training; and their metadata.

        Raises:
          InputError: there are none, or they were made with another tokenizer.
        """
        data_dir = data_dir or Path(self.flags["data_dir"])
        metadata = data_utils.read_metadata(data_dir)
        if data_utils.tokenizer_sha256(metadata) != self.data["tokenizer_sha256"]:
            raise InputError(f"{data_dir} was made with another tokenizer than {self.folder}: "
                             "--data_dir says where the data are")
        return data_dir, metadata

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
          InputError: it is damaged, or has another number of pieces than the network has ids.
        """
        tokenizer = Tokenizer(self.tokenizer_path)
        if tokenizer.vocab_size != self.data["vocab_size"]:
            raise InputError(f"{self.tokenizer_path} has {tokenizer.vocab_size:,} pieces, "
                             f"and the network {self.data['vocab_size']:,} ids")
        return tokenizer

    def language_model_of(self, model, jit_compile: bool = False) -> LanguageModel:
        """A network as functions of text, with the tokenizer of the run."""
        return LanguageModel(
            model, self.tokenizer, self.data["add_eos"], self.data["seq_len"], jit_compile)

    @functools.cached_property
    def _on_gpu(self) -> bool:
        return bool(devices.usable_gpus())

    @functools.cached_property
    def _language_model(self) -> LanguageModel:
        return self.language_model_of(self.model, jit_compile=self._on_gpu)

    @functools.cached_property
    def _token_nll(self):
        return tf.function(self._language_model.token_nll, input_signature=[TEXT])

    def encode(self, text: str) -> tuple[np.ndarray, int]:
        """The ids of a text, int32 [N]; and how many of its characters the tokenizer lacks.

        Raises:
          TypeError: it is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, not {type(text).__name__}")
        ids, _, unknown = self.tokenizer.tokenize(tf.constant(text), self.data["add_eos"])
        return ids.numpy(), int(unknown)

    def log_prob(self, text: str) -> tuple[list[str], np.ndarray]:
        """The log-probability of each token of a text, given all before it.

        The network reads T tokens at once, and carries its memory on.

        Args:
          text: of any length.

        Returns:
          The text of each token, N; and float32 [N], in nats. The first token has nothing before
          it, from which it could be predicted: it has NaN.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, not {type(text).__name__}")
        ids, nll = (each.numpy() for each in self._token_nll(tf.constant(text)))
        return self._texts(ids), np.concatenate([[np.nan], -nll])[:len(ids)].astype(np.float32)

    def generate(self, prompt: str, num_tokens: int = 100, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0) -> str:
        """A prompt and how the network goes on. The same seed gives the same text.

        Args, Raises: as of `stream`.
        """
        return "".join(self.stream(prompt, num_tokens, temperature, top_k, top_p, seed))

    def stream(self, prompt: str, num_tokens: int = 100, temperature: float = 1.0, top_k: int = 0,
               top_p: float = 1.0, seed: int = 0) -> Iterator[str]:
        """Yields the parts of `generate`: the prompt, and then the text of each token.

        Args:
          prompt: of any length.
          num_tokens: how many tokens to write.
          temperature: below 1 keeps to likelier words, 0 takes the likeliest always.
          top_k: draw from so many of the likeliest tokens; 0 for all.
          top_p: draw from the likeliest tokens that together have this probability.
          seed: below 2^31.

        Raises:
          InputError: the prompt is empty.
          ValueError: another argument is out of its range.
          TypeError: the prompt is no string.
        """
        ids, _ = self.encode(prompt)
        if not len(ids):
            raise InputError(EMPTY_PROMPT)
        writer = self._language_model.writer  # or say what is wrong before the prompt is shown
        shown = self.tokenizer.shown(tf.constant(prompt)).numpy().decode()
        yield shown
        written = writer.write(ids, num_tokens, seed, temperature, top_k, top_p)
        yield from self.tokenizer.decode(written, within_line=not shown.endswith(("\n", "\r")))

    def attention(self, text: str) -> tuple[np.ndarray, list[str]]:
        """What each token of a text attends to.

        The network reads T tokens at once. A token sees those before it in its own window, and the
        M before that: the memory.

        Args:
          text: of some windows; the result grows with the square of its length.

        Returns:
          Weights [A, H, N, M + N]: the last axis has the M tokens before the text, of which there
          are none, and then the text's own; and the text of each token, N.
        """
        ids, _ = self.encode(text)
        M, T, N = self.sizes.mem_len, self.data["seq_len"], len(ids)
        A = sum(block.attention is not None for block in self.model.blocks)
        weights = np.zeros([A, self.sizes.num_heads, N, M + N], np.float32)
        memory = self.model.empty_memory(1)  # [blocks with memory, 1, M, D]
        for start in range(0, N, T):
            window = tf.constant(ids[None, start:start + T])  # [1, T], the last one shorter
            _, memory, scores = self.model(
                window, memory, filled=min(start, M), return_attention_scores=True)
            end = start + window.shape[1]
            for block, each in enumerate(scores):
                weights[block, :, start:end, start:M + end] = each[:, 0]  # [H, T, M + T]
        return weights, self._texts(ids)

    def _texts(self, ids: np.ndarray) -> list[str]:
        """The text of each id [N]; nothing while the bytes of a character are not complete."""
        return list(self.tokenizer.decode(ids))[:len(ids)]

    @property
    def tokenizer_path(self) -> Path:
        """The SentencePiece model of the run."""
        path = self.folder / "tokenizer.model"
        if files.digest([files.read_bytes(path, MOST_TOKENIZER)]) != self.data["tokenizer_sha256"]:
            raise InputError(f"{path} is damaged")
        return path

    def network(self, architecture: str | None = None,
                **changes) -> tuple[PARTransformerXL, int]:
        """The trained network of the checkpoint.

        Args:
          architecture: None for the network as it was trained; of a search a letter for each block,
            for this layer alone with the weights that it has in the search, or `found`, for the
            likeliest of each.
          **changes: arguments of the network that shall differ from training, such as `mem_len`.

        Returns:
          The network, whose temperature is the trained one, and the step it comes from.

        Raises:
          InputError: there is no such checkpoint, or it cannot be restored, or the search weighed
            other kinds of layer than there are now; or `architecture` is none that it has weights
            for.
        """
        kinds = self._config["layers"]["kinds"]
        if SEARCH in self._config["model"]["architecture"] and kinds != list(KINDS):
            raise InputError(f"{self.folder} has searched among {', '.join(kinds)}, "
                             f"and layers.KINDS has {', '.join(KINDS)}")
        while True:
            there = self._checkpoints()
            try:
                model, step = self._network(there, changes)
                break
            except InputError:
                if self._checkpoints().keys() == there.keys():
                    raise  # otherwise training has replaced it in this moment
        if architecture:
            model = self._single_layers(model, architecture)
        return model, step

    def _single_layers(self, model: PARTransformerXL, architecture: str) -> PARTransformerXL:
        """A network that has one layer of each block of another, with its weights."""
        if architecture == "found":
            architecture = as_letters(model.most_likely())
        kinds = [letters().get(letter) for letter in architecture]
        if len(kinds) != len(model.blocks) or any(
                kind not in block.branches for kind, block in zip(kinds, model.blocks)):
            raise InputError(f"{self.folder} has no weights for {architecture}: a letter for each "
                             f"of its {len(model.blocks)} blocks must name a layer that it has")
        single = PARTransformerXL.from_config(model.get_config() | {"architecture": kinds})
        weights = by_path(model.weights)
        for path, weight in by_path(single.weights).items():
            weight.assign(weights[path])
        return single

    def _network(self, there: dict, changes: dict) -> tuple[PARTransformerXL, int]:
        """`network`, of the checkpoints that are there."""
        if self.checkpoint not in there:
            names = ", ".join(there) or "none yet"
            raise InputError(
                f"{self.folder} has no checkpoint '{self.checkpoint}': there is {names}")
        checkpoints, step = there[self.checkpoint]
        if damage := checkpoints.damage(step):
            whole = [name for name, (owner, step) in there.items() if not owner.damage(step)]
            choice = ", ".join(whole) or "which there is none"
            raise InputError(f"{damage}: choose another with --checkpoint, of {choice}")
        self._check_weights(checkpoints.shapes(step))
        policy = devices.dtype_policy(self.flags["mixed_precision"])
        model = PARTransformerXL(**self._config["model"] | changes, dtype=policy)
        tau = tf.Variable(0.0)
        state = tf.train.Checkpoint(weights=by_path(model.weights), tau=tau)
        checkpoints.restore(state, step)
        model.tau = float(tau)
        return model, step

    def _check_weights(self, there: dict[str, list[int]]):
        """Raises InputError unless the network has just the weights that a checkpoint has."""
        path = self.folder / "config.json"
        try:
            with keras.StatelessScope(initialize_variables=False):  # takes no memory
                weights = PARTransformerXL(**self._config["model"]).weights
        except (ValueError, TypeError, ArithmeticError) as error:
            reason = schema.shown(str(error).splitlines()[0], 100)
            raise InputError(f"{path} describes no network ({reason})") from None
        finally:  # otherwise Keras initializes them when the next such scope ends
            global_state.set_global_attribute("uninitialized_variables", [])
        for weight in weights:
            if there.get(weight.path) != list(weight.shape):
                raise InputError(f"{path} is of another network than the checkpoints: "
                                 f"{weight.path} would be {list(weight.shape)}")
        if more := there.keys() - {weight.path for weight in weights}:
            raise InputError(f"{path} is of another network than the checkpoints: it lacks "
                             f"{schema.shown(min(more))}")

    def recorded(self, split: str,
                 plugin: str = "scalars") -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What TensorBoard's events of `train` or `valid` hold for a plugin: {tag: steps, values}.

        Of `scalars` the values are numbers, [S]; of `pi` they are pi, [S, L, K].
        """
        curves = {}
        for path in sorted((self.folder / split).glob("events*")):
            recorded, damage = events.read_events(path)
            if damage:
                print(f"{damage}: what follows is not shown", file=sys.stderr)
            for event in recorded:
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == plugin:
                        by_step = curves.setdefault(value.tag, {})
                        by_step[event.step] = self._recorded_value(path, plugin, value.tensor)
        for tag, by_step in curves.items():
            steps = sorted(by_step)
            curves[tag] = np.array(steps), np.array([by_step[step] for step in steps])
        return curves

    def _recorded_value(self, path: Path, plugin: str, tensor) -> np.ndarray:
        """A number of a curve, or pi [L, K].

        Raises:
          InputError: it is neither.
        """
        config = self._config
        pi_shape = len(config["model"]["architecture"]), len(config["layers"]["kinds"])
        expected = pi_shape if plugin == "pi" else ()
        try:
            value = tf.make_ndarray(tensor)
        except (TypeError, ValueError):
            value = None
        if value is None or value.shape != expected or value.dtype.kind not in "fiu":
            raise InputError(f"{path} was not written by this program: delete it")
        return value

    def _checkpoints(self) -> dict[str, tuple[Checkpoints, int]]:
        """Where the checkpoints of each name are, and their step."""
        best = Checkpoints(self.folder / "best", self._run_id)
        latest = Checkpoints(self.folder / "checkpoints", self._run_id)
        there = {}
        for name, checkpoints in (("best", best), ("latest", latest)):
            if steps := checkpoints.steps():
                there[name] = checkpoints, steps[-1]
        for checkpoints in (best, latest):
            for step in checkpoints.steps():
                there[str(step)] = checkpoints, step
        return there


def read_config(folder: Path) -> dict:
    """The configuration of the run in a folder, as `recording.configuration` makes it.

    Raises:
      InputError: there is none, or it is not as `schema` says.
    """
    path = folder / "config.json"
    try:
        config = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is no run: {path} is missing") from None
    if fault := schema.fault(config):
        raise InputError(f"{path} is of another version of this program, or damaged: {fault}")
    if not could_become(config["model"]["architecture"], config["flags"]["architecture"]):
        raise InputError(f"{path} is damaged: flags.architecture and model.architecture differ")
    return config


def could_become(blocks: Sequence[str], architecture: str) -> bool:
    """Whether an architecture, as letters, is that of some blocks, or one that they search.

    Letters of kinds that `layers.KINDS` no longer has are not looked at.
    """
    kinds = [letters().get(letter) for letter in architecture]
    return len(blocks) == len(kinds) and all(
        block == SEARCH or kind in (block, None) for block, kind in zip(blocks, kinds))


def take_weights(model: PARTransformerXL, folder: Path, data: dict):
    """Gives a network the weights that the network of another run has for it (fine-tuning).

    Args:
      model: the network.
      folder: of the other run.
      data: on what this one is trained, as in a configuration.

    Raises:
      InputError: the run has another tokenizer, or lacks a weight, or has it in another shape.
    """
    run = TrainedRun(folder)
    if run.data["tokenizer_sha256"] != data["tokenizer_sha256"]:
        prefix = folder / "tokenizer"
        raise InputError(f"{folder} was trained with another tokenizer: "
                         f"make the data with --sp_model_prefix={prefix}")
    trained = by_path(run.network()[0].weights)
    for path, weight in by_path(model.weights).items():
        if path not in trained:
            raise InputError(f"{folder} has no {path}: its architecture lacks what this one needs")
        theirs = trained[path]
        if theirs.shape != weight.shape:
            raise InputError(f"{path} is {list(theirs.shape)} in {folder} and {list(weight.shape)} "
                             "here: --init_from needs a network of the same sizes")
        weight.assign(theirs)
