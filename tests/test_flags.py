"""Any combination of flags works, or is refused in one line before anything has been written."""

import shutil

import pytest
import tensorflow as tf
from commands import one_line, run_command
from conftest import TINY, VOCAB_SIZE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import as_flags

import data_utils
import train
from support import errors

each_time_the_same = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

# Values of each flag that can work, and values that cannot, whatever the others are.
NO_FLOAT = ["", "x", "-1", "nan", "inf", "-inf", "1e39", "1e-40"]
NO_INTEGER = ["", "x", "-1", "1.5", str(2**31), "9" * 30]
NO_SIZE = [*NO_INTEGER, "0"]
BOOLEAN = ["true", "false"], ["maybe", "2"]
TRAIN = dict(
    model_name=(["run", "a.b-c_d", "7"], ["", ".", "..", "a/b", "../a", "a b", "a\nb", "a\n"]),
    architecture=(
        ["search", "random", "ad", "iii", "sds"], ["", "x", "A", "a d", ".", "no/such/run"]),
    init_from=([], [".", "no/such/run"]),
    num_layers=(["1", "2", "3"], NO_SIZE),
    kinds=(["attention,dense,identity", "identity", "dense,local"], ["", "x", "dense,", "search"]),
    d_model=(["1", "4", "6"], NO_SIZE),
    num_heads=(["1", "2", "4"], NO_SIZE),
    d_ffn=(["1", "5"], NO_SIZE),
    mem_len=(["0", "1", "9"], NO_INTEGER),
    dropout_rate=(["0", "0.5", "0.99"], [*NO_FLOAT, "1"]),
    embedding_dropout=(["0", "0.5", "0.99"], [*NO_FLOAT, "1"]),
    cutoffs=(["", "20", "1,119", "5,10,15"],
             ["x", "0", "-1", "20,20", "30,20", str(VOCAB_SIZE), "9" * 30]),
    proj_factor=(["1", "2", "2147483647"], NO_SIZE),
    straight_through=BOOLEAN,
    tie_embeddings=BOOLEAN,
    tau_start=(["0.001", "2", "1e6"], [*NO_FLOAT, "0"]),
    tau_end=(["0.001", "1", "1e6"], [*NO_FLOAT, "0"]),
    tau_is_trainable=BOOLEAN,
    search=(["joint", "alternating", "uniform"], ["", "x"]),
    arch_share=(["0.01", "0.99"], [*NO_FLOAT, "0", "1"]),
    arch_lr_factor=(["0", "10"], NO_FLOAT),
    gumbel_per_row=BOOLEAN,
    latency_weight=(["0", "0.1", "10"], NO_FLOAT),
    opt_name=(["adam", "rmsprop", "sgd"], ["x"]),
    weight_decay=(["0", "0.1", "1"], NO_FLOAT),
    max_lr=(["0", "1e-4", "1"], NO_FLOAT),
    warmup_steps=(["0", "1", "2147483647"], NO_INTEGER),
    clipnorm=(["1e-6", "10"], [*NO_FLOAT, "0"]),
    epochs=(["0.001", "1.5", "1e6"], [*NO_FLOAT, "0"]),
    max_steps=(["1", "2147483647"], NO_SIZE),
    seed=(["0", "2147483647"], NO_INTEGER),
    log_every=(["1", "2147483647"], NO_SIZE),
    save_every=(["1", "1m", "9" * 30], ["", "0", "0m", "m", "-1", "1h", "1.5m"]),
    jit_compile=(["auto", "false"], ["", "x"]),
    distribute=(["auto", "none", "mirrored"], ["", "x", "multi_worker"]),
    steps_per_execution=(["1", "7"], NO_SIZE),
    accumulate=(["1", "2", "4"], [*NO_SIZE, "3", "8"]),
    mixed_precision=BOOLEAN,
)

BASE = TINY | dict(num_layers=1)
OF_A_SEARCH = dict(
    tau_start="1", tau_end="0.1", search="joint", arch_lr_factor="1", gumbel_per_row="false",
    latency_weight="0", straight_through="false", tau_is_trainable="false")


def conflict(given: dict) -> bool:
    """Whether flags of a training, each of which can work, cannot work together."""

    def number(name):
        return float(given.get(name, BASE[name]))

    architecture, alternating = given.get("architecture"), given.get("search") == "alternating"
    untrained = given.get("search") == "uniform"
    return any((
        number("d_model") % number("num_heads"),
        "arch_share" in given and not alternating,
        "tau_end" in given and given.get("tau_is_trainable") == "true",
        untrained and any(given.get(name, off) != off for name, off in OF_A_SEARCH.items()
                          if name not in ("search", "gumbel_per_row")),
        architecture in ("random", "ad", "iii")
        and any(given.get(name, off) != off for name, off in OF_A_SEARCH.items()),
        architecture in ("ad", "iii") and number("num_layers") != len(architecture),
        alternating and number("warmup_steps") > number("epochs") * 1000))


def some(values: dict):
    """A few of these flags, each with a value that can work."""
    can_work = [name for name, (good, _) in values.items() if good]
    names = st.lists(st.sampled_from(can_work), max_size=6, unique=True)
    return names.flatmap(lambda names: st.fixed_dictionaries(
        {name: st.sampled_from(values[name][0]) for name in names}))


def one_wrong(values: dict):
    """A few of these flags, and the name of the one whose value cannot work."""
    wrong = st.sampled_from([(name, value) for name, (_, bad) in values.items() for value in bad])
    return st.tuples(some(values), wrong).map(lambda both: (both[0] | dict([both[1]]), both[1][0]))


def refusal(program, *given: dict) -> str | None:
    """The one line that a command with such flags ends with; None if it ends well."""
    settings = {name: value for values in given for name, value in values.items()}
    done = run_command(program, *as_flags(**settings))
    return one_line(done) if done.returncode else None


class Trained(BaseException):
    """Two steps have been trained, and what they left is finite."""


def train_two_steps(trainer, run, handle_signals):
    for _ in range(min(2, trainer.last_step)):
        trainer.train(1)
    trainer.complete_state()
    raise Trained


@pytest.fixture
def begin(data_dir, tmp_path_factory, monkeypatch):
    """A function that begins a training: why the flags were refused, None if it trained."""

    def begin(given):
        folder = tmp_path_factory.mktemp("flags")
        monkeypatch.chdir(folder)
        try:
            error = refusal(train, BASE, {"data_dir": data_dir}, given)
        except Trained:
            return None
        assert error and not list(folder.iterdir()), given
        return error

    monkeypatch.setattr(train, "train_epoch", train_two_steps)
    monkeypatch.setattr(train.Recorder, "heat_map", lambda *_: None)  # half a second each
    tf.config.run_functions_eagerly(True)
    yield begin
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though.*run_functions_eagerly")
@settings(each_time_the_same, max_examples=40)
@given(given=some(TRAIN))
def test_flags_of_a_training_work_or_are_refused_where_they_cannot_work_together(given, begin):
    error = begin(given)
    assert (error is not None) == conflict(given), error


@settings(each_time_the_same, max_examples=150)
@given(given=one_wrong(TRAIN))
def test_a_value_that_cannot_work_is_refused_and_named(given, begin):
    given, wrong = given
    error = begin(given)
    assert wrong in error or given[wrong] in error or conflict(given | {wrong: "1"}), error


# -------------------------------------------------------------------------------------------------
# The data

TEXTS = dict(input_dir=(["corpus"], ["nowhere", "book.txt"]),
             input_text=(["book.txt"], ["nowhere", "corpus", "empty.txt"]))
DATA = dict(
    corpus=(["auto", "pydocs"], ["", "x"]),
    vocab_size=(["320", "340"], [*NO_SIZE, "260", "100000", "2147483647"]),
    model_type=(["unigram", "bpe", "char"], ["", "x"]),
    normalization_rule_name=(["nfkc", "identity"], ["x"]),
    character_coverage=(["0.99"], [*NO_FLOAT, "0.97", "1.1"]),
    add_eos=BOOLEAN,
    sp_model_prefix=(["tokenizer"], ["nowhere", "book"]),
    batch_size=(["1", "3", "8"], [*NO_SIZE, "2147483647"]),
    seq_len=(["1", "7"], [*NO_SIZE, "2147483647"]),
    valid_fraction=(["0.1", "0.3"], [*NO_FLOAT, "0", "1"]),
    test_fraction=(["0.1", "0.3"], [*NO_FLOAT, "0", "1"]),
)


def data_conflict(given: dict) -> bool:
    """Whether flags of the data, each of which can work, cannot work together."""
    own_text = [name for name in ("input_dir", "input_text") if given.get(name)]
    of_a_text = {"valid_fraction", "test_fraction"}
    of_a_new_tokenizer = {
        "vocab_size", "model_type", "normalization_rule_name", "character_coverage"}
    return any((
        len(own_text) != 1,  # there is no network
        "corpus" in given,
        own_text == ["input_dir"] and of_a_text & given.keys(),
        "sp_model_prefix" in given and of_a_new_tokenizer & given.keys()))


@pytest.fixture
def make(corpus_dir, data_dir, tmp_path, monkeypatch):
    """A function that makes data with flags.

    Returns why they were refused, None if it made the data; and their folder.
    """
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    for suffix in (".model", ".vocab"):
        shutil.copy(data_dir / f"tokenizer{suffix}", tmp_path)
    (tmp_path / "book.txt").write_text(4 * (corpus_dir / "train.txt").read_text())
    (tmp_path / "empty.txt").write_text("")
    monkeypatch.chdir(tmp_path)

    def written():
        return {path for path in tmp_path.rglob("*") if path.is_file()}

    before = written()

    def make(given):
        shutil.rmtree("data", ignore_errors=True)
        default = {} if "sp_model_prefix" in given else {"vocab_size": "320"}
        error = refusal(data_utils, default, given)
        assert not error or written() == before, given
        return error, tmp_path / "data" / "tfrecords"

    def no_corpus(*_):
        raise errors.InputError("no network here")

    monkeypatch.setattr(data_utils, "choose_corpus", no_corpus)
    return make


@settings(each_time_the_same, max_examples=30)
@given(given=some(DATA),
       text=st.sampled_from([{"input_dir": "corpus"}, {"input_text": "book.txt"}]))
def test_flags_of_the_data_work_or_are_refused_where_they_cannot_work_together(given, text, make):
    given |= text
    error, folder = make(given)
    assert (error is not None) == data_conflict(given), error
    if not error:
        metadata = data_utils.read_metadata(folder)
        assert metadata["batch_size"] == int(given.get("batch_size", 32))
        assert metadata["seq_len"] == int(given.get("seq_len", 32))
        pieces = VOCAB_SIZE if "sp_model_prefix" in given else int(given.get("vocab_size", 320))
        all_characters = given.get("model_type") == "char" and metadata["vocab_size"] < pieces
        assert metadata["vocab_size"] == pieces or all_characters


@settings(each_time_the_same, max_examples=60)
@given(given=st.one_of(one_wrong(DATA), one_wrong(TEXTS)))
def test_a_value_that_cannot_make_data_is_refused_and_named(given, make):
    given, wrong = given
    given = {"input_dir": "corpus"} | given if "input_text" not in given else given
    error, _ = make(given)
    others = {name: value for name, value in given.items() if name != wrong}
    assert wrong in error or given[wrong] in error or data_conflict(others), error
