import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from absl import flags
from conftest import PROJECT
from test_flags import flags_of

import generate
from generate import Writer
from runs import TrainedRun
from tokenization import BOS, EOS, PAD, UNK, Tokenizer

PROMPT = [7, 30, 9, 50, 11, 4, 80, 21, 15]  # longer than the memory


@pytest.fixture(scope="module")
def network(search_run):
    model, tau, _ = TrainedRun(search_run).network(mem_len=5)
    for layer in (model.embedding.embeddings, model.softmax.head):  # likelier ids differ from context to context
        layer.assign(layer + np.random.default_rng(0).normal(size=layer.shape))
    kernel = model.softmax.head.numpy()
    kernel[-1, [PAD, BOS, UNK]] += 9  # the likeliest by far, and yet never written
    model.softmax.head.assign(kernel)
    return model, tau


def log_prob_after(model, tau, tokens):
    """Log-probabilities [V] of what follows some tokens, read one at a time."""
    memory = model.empty_memory(1)
    for position, token in enumerate(tokens):
        hidden, memory = model(tf.constant([[token]]), memory, filled=min(position, model.mem_len), tau=tau)
    return model.softmax.log_prob(hidden[0]).numpy()[0]


def test_without_temperature_the_likeliest_id_follows(network):
    written = list(Writer(*network, False, temperature=0.0).write(PROMPT, 12, seed=0))
    for number, token in enumerate(written):
        scores = log_prob_after(*network, PROMPT + written[:number])
        scores[[PAD, BOS, UNK]] = -np.inf
        assert token == scores.argmax()
    assert len(written) == 12 and len(set(written)) > 2


def test_ids_are_drawn_with_their_probability(network):
    writer = Writer(*network, False, temperature=0.8)
    drawn = [next(writer.write([7], 1, seed)) for seed in range(2000)]
    scores = log_prob_after(*network, [7]) / 0.8
    scores[[PAD, BOS, UNK]] = -np.inf
    probability = np.exp(scores) / np.exp(scores).sum()
    frequency = np.bincount(drawn, minlength=len(scores)) / 2000
    assert np.all(np.abs(frequency - probability) <= 4.5 * np.sqrt(probability * (1 - probability) / 2000) + 1e-9)


def test_the_same_seed_writes_the_same_and_another_something_else(network):
    texts = [list(Writer(*network, False).write(PROMPT, 20, seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_compiled_and_graph_mode_write_the_same(search_run):
    texts = []
    for compiled in (False, True):
        model, tau, _ = TrainedRun(search_run).network(static_shapes=compiled)
        texts.append(list(Writer(model, tau, compiled, top_k=20, top_p=0.9).write(PROMPT, 8, seed=1)))
    assert texts[0] == texts[1]


def test_top_k_and_top_p_keep_what_a_plain_loop_keeps():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=50).astype(np.float32) * 2
        probability = np.exp(scores) / np.exp(scores).sum()
        order = np.argsort(-scores)
        for k in (1, 7, 50, 80):
            assert set(np.flatnonzero(np.isfinite(generate.keep_top_k(scores, k)))) == set(order[:k])
        for p in (1e-6, 0.3, 0.9, 0.999):
            kept, total = [], 0.0
            for token in order:
                if total >= p:
                    break
                kept.append(token)
                total += probability[token]
            assert set(np.flatnonzero(np.isfinite(generate.keep_top_p(scores, p)))) == set(kept)
        unchanged = np.isfinite(generate.keep_top_k(scores, 7))
        assert np.array_equal(generate.keep_top_k(scores, 7).numpy()[unchanged], scores[unchanged])


def test_the_cost_of_a_token_does_not_grow(network):
    traces = []
    writer = Writer(*network, False)
    following = writer._next
    writer._compiled = tf.function(lambda *arguments: traces.append(1) or following(*arguments))
    shapes = {tuple(writer._compiled(tf.constant(5), network[0].empty_memory(1), tf.constant(position), tf.constant(0))[1].shape) for position in (0, 1, 900)}
    assert len(traces) == 1 and len(shapes) == 1


def run_generate(*flags, stdin=""):
    return subprocess.run([sys.executable, PROJECT / "generate.py", *flags], input=stdin, capture_output=True, text=True)


def test_on_the_console(search_run):
    run = f"--run={search_run}"
    one, two = (run_generate(run, "--prompt=Ωmega and a word", "--num_tokens=6", f"--num_samples={n}", "--seed=5") for n in (1, 2))
    assert one.returncode == 0 and one.stderr == "" and one.stdout.startswith("Ωmega and a word")
    assert two.stdout.startswith(one.stdout) and two.stdout.count("\n") == 2 == len(set(two.stdout.splitlines()))
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(search_run / "tokenizer.model"))
    model, tau, _ = TrainedRun(search_run).network(mem_len=6 + 8 - 1)
    prompt = tokenizer.encode("Ωmega and a word")
    written = list(Writer(model, tau, False).write(prompt, 6, 5))
    whole = b"".join(piece_bytes(tokenizer.id_to_piece(token)) for token in written).decode(errors="replace")
    assert one.stdout == "Ωmega and a word" + whole + "\n"
    typed = run_generate(run, "--num_tokens=2", stdin="one\n\n  \ntwo ? é 红 ☃\n")
    assert [line[:3] for line in typed.stdout.splitlines()] == ["one", "two"] and "two ? é 红 ☃" in typed.stdout and typed.stderr == ""


def piece_bytes(piece):
    return bytes([int(piece[1:-1], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()


def test_a_prompt_of_several_lines_is_read_as_training_reads_a_text(search_run, data_dir, monkeypatch, capsys):
    tokenizer, prompts = Tokenizer(data_dir / "tokenizer.model"), []
    monkeypatch.setattr(Writer, "write", lambda self, prompt, num_tokens, seed: prompts.append(prompt.tolist()) or iter([EOS, 9]))
    text = "the city\nof the\u2028old "
    with flags_of(generate):
        flags.FLAGS(["generate.py", f"--run={search_run}", f"--prompt={text}"])
        generate.main(None)
    expected = [token for line in ("the city", "of the old") for token in tokenizer.encode(line, False)]
    assert prompts == [expected]
    piece = "".join(tokenizer.decode([9]))
    assert capsys.readouterr().out == f"{text.rstrip(' ')}\n{piece}\n"


def test_a_prompt_that_is_not_utf8_is_refused_in_one_line(search_run):
    run, wrong = f"--run={search_run}", b"caf\xe9"
    given = subprocess.run([sys.executable, PROJECT / "generate.py", run, b"--prompt=" + wrong], capture_output=True)
    typed = subprocess.run([sys.executable, PROJECT / "generate.py", run], input=wrong + b"\n", capture_output=True)
    assert (given.returncode, given.stderr) == (1, b"error: the value of --prompt is not UTF-8\n")
    assert (typed.returncode, typed.stderr) == (1, b"error: the prompt is not UTF-8\n")


@pytest.mark.parametrize("flags, message", [
    (["--prompt=  "], "the prompt is empty: there is nothing to continue"),
    (["--prompt=x", "--top_p=1.5"], "flag --top_p=1.5"),
    (["--prompt=x", "--top_k=0"], "flag --top_k=0"),
    (["--prompt=x", "--temperature=nan"], "flag --temperature=nan"),
    (["--prompt=x", "--checkpoint=worst"], "has no checkpoint 'worst': there is best, latest")])
def test_mistakes_end_in_one_line(flags, message, search_run):
    done = run_generate(f"--run={search_run}", *flags)
    assert done.returncode == 1 and message in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
