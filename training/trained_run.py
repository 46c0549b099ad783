"""The folder of a run, logs/<model_name>: its flags, its checkpoints, and the network in it."""

import functools
from pathlib import Path

from support import cli

with cli.quiet():
    import tensorflow as tf

import data_utils
from layers import KINDS, SEARCH, as_letters, from_letters, letters
from model import PARTransformerXL
from support import devices, files
from support.checkpoints import Checkpoints, by_path
from support.errors import InputError
from support.tokenization import Tokenizer
from training.language_model import LanguageModel
from training.settings import Settings, settings_of

CONFIG = ("flags", "data", "run_id")  # what config.json holds


class TrainedRun:
    """A run, finished or still training.

        language_model = TrainedRun("logs/supernet").language_model
        tokens, log_prob = language_model.log_prob("The king was dead.")
        print(language_model.generate("The history of", num_tokens=50, temperature=0.8, seed=1))

    Args:
      folder: the folder of the run.
      checkpoint: `best` (the lowest validation loss), `latest`, or the step of a checkpoint.

    Attributes:
      folder, checkpoint: as given.
      flags: the flags of train.py, by name.
      data: corpus, batch size, window length and tokenizer of the training data.

    Raises:
      InputError: the folder holds no run, or config.json is damaged.
    """

    def __init__(self, folder: str | Path, checkpoint: str | int = "best"):
        self.folder, self.checkpoint = Path(folder), str(checkpoint)
        config = read_config(self.folder)
        self.flags, self.data, self._run_id = config["flags"], config["data"], config["run_id"]

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings of the training.

        Raises:
          InputError: the run used layer types that `layers.KINDS` does not have.
        """
        architecture = self.flags["architecture"]
        unknown = ({*self.flags.get("kinds", ())} - {*KINDS}) | ({*architecture} - {*letters()})
        if unknown:
            raise InputError(f"{self.folder} has layers of type '{min(unknown)}', "
                             f"but layers.KINDS has only {', '.join(KINDS)}")
        return settings_of(self.flags, from_letters(architecture))

    @property
    def architecture(self) -> str:
        """The found architecture, a letter for each block, once the run has finished.

        Raises:
          InputError: the run has not finished, or is a uniform search; or results.json is damaged.
        """
        path = self.folder / "results.json"
        try:
            results = files.read_json(path, ["architecture", "run_id"])
        except FileNotFoundError:
            raise InputError(f"{self.folder} has no results.json: it has not finished") from None
        if results["run_id"] != self._run_id:
            raise InputError(f"{path} belongs to another run")
        self._check_choice(from_letters(results["architecture"]))
        return results["architecture"]

    def find_data(self, data_dir: str | Path | None = None) -> tuple[Path, dict]:
        """The folder of the training data, or `data_dir` if given, and its metadata.

        Raises:
          InputError: there is no data, or it was made with another tokenizer.
        """
        data_dir = Path(data_dir or self.flags["data_dir"])
        metadata = data_utils.read_metadata(data_dir)
        if data_utils.tokenizer_sha256(metadata) != self.data["tokenizer_sha256"]:
            raise InputError(f"{data_dir} was made with a different tokenizer from that of "
                             f"{self.folder}: choose the right data with --data_dir")
        return data_dir, metadata

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
          InputError: it is damaged.
        """
        path = self.folder / "tokenizer.model"
        if files.sha256(path) != self.data["tokenizer_sha256"]:
            raise InputError(f"{path} is damaged")
        return Tokenizer(path)

    @functools.cached_property
    def language_model(self) -> LanguageModel:
        """The network of the checkpoint as functions of text.

        Raises:
          InputError: see `network` and `tokenizer`.
        """
        on_gpu = bool(devices.usable_gpus())
        return self.language_model_of(self.network(static_shapes=on_gpu)[0], jit_compile=on_gpu)

    def language_model_of(self, model, jit_compile: bool = False) -> LanguageModel:
        """A network as functions of text, with the tokenizer of the run."""
        return LanguageModel(
            model, self.tokenizer, self.data["add_eos"], self.data["seq_len"], jit_compile)

    def search(self) -> tuple[PARTransformerXL, int]:
        """The network of a search, as from `network`.

        Raises:
          InputError: see `network`; or the architecture of the run is fixed.
        """
        model, step = self.network()
        if SEARCH not in model.architecture:
            raise InputError(f"{self.folder} is not a search: its architecture is fixed")
        return model, step

    def network(self, architecture: str | None = None,
                **changes) -> tuple[PARTransformerXL, int]:
        """The network of the checkpoint.

        Args:
          architecture: None for the network as trained; a letter for each block for a subnetwork of
            a search, with its weights; `found` for the most likely layers at this checkpoint.
          **changes: arguments of the network that differ from training, such as `mem_len`.

        Returns:
          The network, at the temperature of the checkpoint, and the step of the checkpoint.

        Raises:
          InputError: there is no such checkpoint, or it cannot be restored; or the run has no
            weights for `architecture`.
        """
        while True:
            there = self._checkpoints()
            try:
                model, step = self._network(there, changes)
                break
            except InputError:
                if self._checkpoints().keys() == there.keys():
                    raise  # otherwise training has just replaced the checkpoint
        return (self._subnetwork(model, architecture) if architecture else model), step

    def _network(self, there: dict, changes: dict) -> tuple[PARTransformerXL, int]:
        """`network`, from the checkpoints that are there."""
        if self.checkpoint not in there:
            names = ", ".join(there) or "none yet"
            raise InputError(
                f"{self.folder} has no checkpoint '{self.checkpoint}': it has {names}")
        checkpoints, step = there[self.checkpoint]
        if damage := checkpoints.damage(step):
            whole = [name for name, (owner, step) in there.items() if not owner.damage(step)]
            raise InputError(f"{damage}; intact checkpoints: {', '.join(whole) or 'none'}")
        arguments = self.settings.network_arguments(self.data["vocab_size"]) | changes
        policy = devices.dtype_policy(self.flags["mixed_precision"])
        model = PARTransformerXL(**arguments, dtype=policy)
        tau = tf.Variable(0.0)
        state = tf.train.Checkpoint(weights=by_path(model.weights), tau=tau)
        checkpoints.restore(state, step)
        model.tau = float(tau)
        return model, step

    def _subnetwork(self, model: PARTransformerXL, architecture: str) -> PARTransformerXL:
        """A network with one layer of each block of `model`, and its weights."""
        if architecture == "found":
            self._check_choice(model.most_likely())
            architecture = as_letters(model.most_likely())
        kinds = [letters().get(letter) for letter in architecture]
        if len(kinds) != len(model.blocks) or any(
                kind not in block.branches for kind, block in zip(kinds, model.blocks)):
            raise InputError(f"{self.folder} has no weights for {architecture}: name a layer type "
                             f"of each of its {len(model.blocks)} blocks")
        single = PARTransformerXL.from_config(model.get_config() | {"architecture": kinds})
        weights = by_path(model.weights)
        for path, weight in by_path(single.weights).items():
            weight.assign(weights[path])
        return single

    def _check_choice(self, architecture: list[str]):
        """Raises InputError if a block of an architecture is still searched."""
        if SEARCH in architecture:
            raise InputError(f"{self.folder} is a uniform search, which does not choose an "
                             f"architecture: run python choose.py --run={self.folder}")

    def _checkpoints(self) -> dict[str, tuple[Checkpoints, int]]:
        """The checkpoints by name (`best`, `latest` and steps): where they are, and their step."""
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
    """The configuration of the run in a folder, as `recording.configuration` made it.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    try:
        return files.read_json(path, CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is not a run: {path} is missing") from None


def take_weights(model: PARTransformerXL, folder: Path, data: dict):
    """Initializes a network with the weights of another run (fine-tuning).

    Args:
      model: the network.
      folder: the folder of the other run.
      data: the training data of this run, as in its configuration.

    Raises:
      InputError: the other run has another tokenizer, or lacks a weight of the same shape.
    """
    run = TrainedRun(folder)
    if run.data["tokenizer_sha256"] != data["tokenizer_sha256"]:
        prefix = folder / "tokenizer"
        raise InputError(f"{folder} was trained with another tokenizer: "
                         f"make the data with --sp_model_prefix={prefix}")
    trained = by_path(run.network()[0].weights)
    for path, weight in by_path(model.weights).items():
        if path not in trained:
            raise InputError(f"{folder} has no {path}: its architecture lacks a layer that this "
                             "one has")
        theirs = trained[path]
        if theirs.shape != weight.shape:
            raise InputError(f"{path} is {list(theirs.shape)} in {folder} and {list(weight.shape)} "
                             "here: --init_from needs a network of the same sizes")
        weight.assign(theirs)
