"""A trained network as functions of text, a SavedModel and Keras files."""

import json
import math
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import one_line, run_command
from conftest import BATCH_SIZE, VOCAB_SIZE, tiny_settings, train_in
from hypothesis import given
from hypothesis import strategies as st

import choose
import data_utils
import evaluate
import export
import generate
from model import PARTransformerXL
from support.tokenization import EOS, UNK
from training.scoring import window_nll
from training.trained_run import TrainedRun
from training.trainer import build_network

TEXTS = ["the city of the old king and the sea", "a", "", "two lines\nof a text é 红\n" * 9]
SETTINGS = dict(num_tokens=12, temperature=0.8, top_k=30, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def run(search_run):
    return TrainedRun(search_run)


@pytest.fixture(scope="module")
def lm(run):
    return run.language_model


def loaded(folder) -> dict:
    """The signatures of a SavedModel; each refers to the module, which owns the weights."""
    module = tf.saved_model.load(str(folder))

    def signature(name):
        def call(**arguments):
            tensors = {name: tf.constant(value) for name, value in arguments.items()}
            results = module.signatures[name](**tensors)
            return {name: value.numpy() for name, value in results.items()}

        return call

    return {name: signature(name) for name in module.signatures}


@pytest.fixture(scope="module")
def signatures(saved_model):
    return loaded(saved_model)


# --------------------------------------------------------------------------------------------------
# Functions of text


def test_log_prob_matches_a_plain_loop_over_windows(run, lm):
    text, T = TEXTS[3], run.data["seq_len"]
    ids, _ = lm.encode(text)
    memory, expected = lm.model.empty_memory(1), [math.nan]
    for start in range(0, len(ids) - 1, T):
        window = ids[start:start + T][:len(ids) - 1 - start]
        hidden, memory = lm.model(tf.constant([window]), memory,
                                  filled=min(start, lm.model.sizes.mem_len), tau=lm.model.tau)
        log_prob = lm.model.softmax.log_prob(hidden[0]).numpy()
        expected += [log_prob[i, target] for i, target in enumerate(ids[start + 1:start + T + 1])]
    tokens, found = lm.log_prob(text)
    assert len(tokens) == len(found) == len(ids) > 3 * T
    assert np.allclose(found, expected, atol=1e-5, equal_nan=True)
    assert "".join(tokens).split() == text.split()


def test_a_text_without_two_tokens_has_no_log_prob(lm):
    for text, length in (("", 0), ("a", 1)):
        tokens, found = lm.log_prob(text)
        assert len(tokens) == len(found) == length and np.isnan(found).all()


def test_the_default_temperature_is_the_trained_one(run, search_run, lm):
    ids, memory = tf.constant([[5, 6, 7]]), lm.model.empty_memory(1)
    own, _ = lm.model(ids, memory, filled=0)
    given, _ = lm.model(ids, memory, filled=0, tau=lm.model.tau)
    other, _ = lm.model(ids, memory, filled=0, tau=1.0)
    assert np.array_equal(own, given) and not np.allclose(own, other)
    state = tf.train.load_checkpoint(str(search_run / "best" / str(run.network()[1]) / "state"))
    assert lm.model.tau == state.get_tensor("tau/.ATTRIBUTES/VARIABLE_VALUE")


@pytest.mark.parametrize("text", [None, 3, ["a"], b"a"])
def test_a_text_is_a_string(text, lm):
    for function in (lm.log_prob, lm.attention, lm.generate):
        with pytest.raises(TypeError, match="a text must be a string, not "):
            function(text)


def test_attention_reaches_as_far_as_window_and_memory(run, lm):
    weights, tokens = lm.attention(TEXTS[3])
    N, M, T = len(tokens), lm.model.sizes.mem_len, run.data["seq_len"]
    assert weights.shape == (2, 2, N, M + N)
    assert np.allclose(weights.sum(axis=-1), 1, atol=1e-5)
    for query in range(N):
        window = query // T * T
        seen = np.zeros(M + N, bool)
        seen[M + max(0, window - M):M + query + 1] = True
        assert np.all((weights[:, :, query] > 0) == seen)


@pytest.mark.parametrize("setting", ["keras", "tensorflow"])
def test_loaded_networks_survive_a_new_seed(setting, lm, saved_model):
    """Setting a seed clears TensorFlow's cache of kernels, with the resources they own."""
    loaded = tf.saved_model.load(str(saved_model)).signatures["score"]
    text = tf.constant(["a word of a text"])
    before = lm.log_prob("a word of a text")[1], loaded(text=text)["nats"].numpy()
    keras.utils.set_random_seed(1) if setting == "keras" else tf.random.set_seed(2)
    assert np.array_equal(lm.log_prob("a word of a text")[1], before[0], equal_nan=True)
    assert loaded(text=text)["nats"].numpy() == before[1]
    assert lm.generate("a word", num_tokens=3, seed=1).startswith("a word")


@pytest.mark.parametrize("settings", [
    {"num_tokens": 0}, {"temperature": -1.0}, {"temperature": 1e-30}, {"temperature": math.nan},
    {"top_k": -1}, {"seed": 2**31}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}])
def test_settings_out_of_range_are_refused_from_python(settings, lm):
    with pytest.raises(ValueError, match=f"^{min(settings)} must be "):
        lm.generate("a", **settings)


# --------------------------------------------------------------------------------------------------
# SavedModel

AWAY = """
import json, sys
import tensorflow as tf, tensorflow_text
folder, texts, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
module = tf.saved_model.load(folder)
scores = module.signatures["score"](text=tf.constant(texts))
settings = {name: tf.constant(value) for name, value in settings.items()}
written = module.signatures["generate"](prompt=tf.constant(texts[:2]), **settings)["text"]
assert not {"model", "training", "sentencepiece", "data_utils"} & set(sys.modules)
print(json.dumps({name: value.numpy().tolist() for name, value in scores.items()}
                 | {"text": [text.decode() for text in written.numpy()]}))
"""


def test_a_process_with_only_tensorflow_gets_the_results_of_the_commands(
        saved_model, search_run, tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-Ic", AWAY, saved_model, json.dumps(TEXTS), json.dumps(SETTINGS)]
    done = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    away = json.loads(done.stdout)
    for text, nats, tokens, size in zip(TEXTS, away["nats"], away["tokens"], away["bytes"]):
        assert size == len(text.encode())
        if tokens:
            (tmp_path / "text.txt").write_text(text)
            score = evaluate.evaluate_run(TrainedRun(search_run), text=tmp_path / "text.txt")
            assert score["targets"] == tokens
            assert score["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert [tokens > 0 for tokens in away["tokens"]] == [True, False, False, True]
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    for prompt, text in zip(TEXTS, away["text"]):
        printed = run_command(generate, f"--run={search_run}", f"--prompt={prompt}", *flags)
        assert printed.stdout == f"{text}\n"


def test_the_texts_of_a_batch_do_not_affect_each_other(signatures):
    prompts = ["the city", "a", "two lines\nof a ", "é 红 and the old king of the sea in the city"]
    together = signatures["generate"](prompt=prompts, **SETTINGS)["text"]
    alone = [signatures["generate"](prompt=[prompt], **SETTINGS)["text"][0] for prompt in prompts]
    assert together.tolist() == alone and len(set(alone)) == 4
    scores = signatures["score"](text=TEXTS)["nats"]
    assert scores.tolist() == [signatures["score"](text=[text])["nats"][0] for text in TEXTS]
    assert signatures["score"](text=np.array([], dtype=str))["nats"].shape == (0,)


@pytest.mark.parametrize("changes, message", [
    ({"prompt": [""]}, "the prompt is empty"), ({"prompt": [b"\xff"]}, "the text is not UTF-8"),
    ({"num_tokens": 0}, "num_tokens must be"), ({"top_k": -1}, "top_k must be"),
    ({"temperature": -1.0}, "temperature must be"), ({"top_p": 0.0}, "top_p must be"),
    ({"temperature": math.nan}, "temperature must be"), ({"seed": -1}, "seed must be")])
def test_bad_input_is_named_by_the_graph(changes, message, signatures):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["generate"](**{"prompt": ["a"]} | SETTINGS | changes)


def test_a_line_end_is_one_byte_and_a_byte_order_mark_none(signatures):
    plain = b"a word\nof a text\n"
    texts = [plain, plain.replace(b"\n", b"\r\n"), plain.replace(b"\n", b"\r"),
             b"\xef\xbb\xbf" + plain]
    scores = signatures["score"](text=tf.constant(texts))
    assert scores["bytes"].tolist() == [len(plain)] * 4
    assert len(set(scores["nats"].tolist())) == 1


def test_a_prompt_that_ends_with_an_empty_line_is_continued_at_its_start(lm, signatures):
    prompt = "a word\n \t"
    text = lm.generate(prompt, num_tokens=3, temperature=0.8, seed=1)
    assert text.startswith("a word\n") and text[7:8].strip()
    away = signatures["generate"](**SETTINGS | {"prompt": [prompt], "num_tokens": 3, "seed": 1,
                                               "top_k": 0, "top_p": 1.0})
    assert away["text"][0].decode() == text


def test_a_subnetwork_has_only_its_layers_and_half_precision_half_the_size(
        search_run, run, saved_model, tmp_path):
    sizes = {}
    for half in (False, True):
        folder = tmp_path / f"half_{half}"
        done = run_command(export, f"--run={search_run}", "--architecture=found",
                           f"--half={half}", f"--output_dir={folder}")
        assert done.returncode == 0 and f"the layers {run.architecture}, " in done.stdout
        assert "expect a higher loss" in done.stderr
        sizes[half] = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
        nats = loaded(folder)["score"](text=TEXTS[3:])["nats"][0]
        model, _ = run.network(architecture="found")
        found = run.language_model_of(model)
        expected = float(tf.reduce_sum(found.token_nll(found.ids(TEXTS[3]))))
        assert nats == pytest.approx(expected, rel=1e-2 if half else 1e-5)
    whole = (saved_model / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert sizes[True] < 0.6 * sizes[False] < 0.6 * whole


def test_an_export_replaces_another_and_nothing_else(begun, saved_model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    given = f"--run={begun}"
    done = run_command(export, given, f"--output_dir={tmp_path / 'mine'}")
    assert "contains files that this program did not write (notes)" in one_line(done)
    assert (tmp_path / "mine" / "notes").read_text() == "mine"
    shutil.copytree(saved_model, begun / "saved_model")
    done = run_command(export, given, "--half")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"wrote {begun}/saved_model: the mixture of a search, ")
    assert json.loads((begun / "saved_model" / "export.json").read_text())["weights"] == "float16"


@given(ids=st.lists(st.integers(EOS, VOCAB_SIZE - 1).filter(lambda token: token != UNK),
                    max_size=12), within_line=st.booleans())
def test_ids_become_the_same_text_inside_a_graph(ids, within_line, run):
    pieces = "".join(run.tokenizer.decode(ids, within_line))
    found = run.tokenizer.detokenize(tf.constant(ids, tf.int32), tf.constant(within_line))
    assert found.numpy().decode() == pieces


def test_a_search_with_tied_embeddings_can_be_exported_chosen_from_and_tuned(data_dir, tmp_path):
    tied = dict(data_dir=str(data_dir), tie_embeddings=True, proj_factor=2, max_steps=60)
    search = train_in(tmp_path, model_name="search", **tied)
    run = TrainedRun(search)
    assert run.language_model.model.embedding is run.language_model.model.softmax.table
    export.save(run, None, tf.float32, tmp_path / "saved")
    scores = loaded(tmp_path / "saved")["score"](text=tf.constant([TEXTS[0]]))
    log_prob = run.language_model.log_prob(TEXTS[0])[1]
    assert scores["nats"][0] == pytest.approx(-np.nansum(log_prob), rel=1e-5)
    assert run_command(choose, f"--run={search}", "--num_windows=1").returncode == 0
    report = json.loads(next(search.glob("choices_step*.json")).read_text())
    loss, = (each["loss"] for each in report["choices"] if each["architecture"] == "ad")
    metadata, (single, _) = data_utils.read_metadata(data_dir), run.network(architecture="ad")
    window = next(data_utils.load_windows(data_dir, "valid", metadata).as_numpy_iterator())
    nll, _ = window_nll(
        single, tf.constant(window), single.empty_memory(BATCH_SIZE), 0, tau=None)
    assert loss == pytest.approx(np.mean(nll), rel=1e-5)
    found = train_in(tmp_path, model_name="found", init_from=str(search), architecture="ad",
                     **tied | {"max_steps": 2})
    assert TrainedRun(found).network()[0].tie_embeddings


# --------------------------------------------------------------------------------------------------
# Keras


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("changes", [
    {}, {"tau_is_trainable": True, "architecture": ["search", "dense"]},
    {"architecture": ["attention", "identity"], "cutoffs": []},
    {"architecture": ["dense"], "tie_embeddings": True, "proj_factor": 2}])
def test_a_network_saved_by_keras_gives_the_same_results(changes, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = build_network(tiny_settings(**changes), VOCAB_SIZE, static_shapes=False)
    keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    model.tau = 0.3
    model.save(tmp_path / "network.keras")
    model.save_weights(tmp_path / "network.weights.h5")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    again = PARTransformerXL.from_config(model.get_config())
    again.load_weights(tmp_path / "network.weights.h5")
    tokens = tf.constant(rng.integers(0, VOCAB_SIZE, [2, 5]))
    expected = model(tokens, model.empty_memory(2), filled=0)
    for other in (loaded, again):
        found = other(tokens, other.empty_memory(2), filled=0)
        assert all(map(np.array_equal, expected, found))
        assert other.get_config() == model.get_config()
        log_prob = other.softmax.log_prob(found[0][0])
        assert np.array_equal(log_prob, model.softmax.log_prob(expected[0][0]))


def test_the_summary_shows_shapes(capsys):
    model = build_network(tiny_settings(), VOCAB_SIZE, static_shapes=False)
    model.summary()
    shown = capsys.readouterr().out
    assert shown.count("(None, None, 8)") == 3 and "?" not in shown
