"""Text sampled from the probabilities of the network."""

import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from commands import one_line, run_command
from conftest import PROJECT, ids_of

import generate
from layers.attention import score_bias
from support.tokenization import BOS, EOS, PAD, UNK, Tokenizer
from training import writer
from training.trained_run import TrainedRun
from training.writer import Writer

PROMPT = [7, 30, 9, 50, 11, 4, 80, 21, 15]  # longer than the memory
MEM_LEN = 5


@pytest.fixture(scope="module")
def network(search_run):
    model, _ = TrainedRun(search_run).network()
    # With larger weights the likeliest ids differ from context to context.
    for seed, rows in enumerate((model.embedding.rows[0], model.softmax.table.rows[0])):
        rows.assign(rows + np.random.default_rng(seed).normal(size=rows.shape))
    bias = model.softmax.biases[0].numpy()
    bias[[PAD, BOS, UNK]] += 9  # the likeliest by far, and yet never written
    model.softmax.biases[0].assign(bias)
    return model


def log_probs(model, tokens):
    """Log-probabilities [N, V] of what follows each of some tokens, read one at a time."""
    memory, found = model.empty_memory(1, MEM_LEN), []
    for position, token in enumerate(tokens):
        filled = min(position, MEM_LEN)
        hidden, memory = model(tf.constant([[token]]), memory, filled=filled)
        found.append(model.softmax.log_prob(hidden[0]).numpy()[0])
    return np.array(found)


def test_without_temperature_the_likeliest_id_follows(network):
    written = list(Writer(network, MEM_LEN).write(PROMPT, 12, seed=0, temperature=0))
    scores = log_probs(network, PROMPT + written[:-1])[len(PROMPT) - 1 :]
    scores[:, [PAD, BOS, UNK]] = -np.inf
    assert written == scores.argmax(axis=1).tolist()
    assert len(written) == 12 and len(set(written)) > 2


def test_ids_are_drawn_with_their_probability(network):
    writer = Writer(network, MEM_LEN)
    drawn = [next(writer.write([7], 1, seed, temperature=0.8)) for seed in range(2000)]
    scores = log_probs(network, [7])[0] / 0.8
    scores[[PAD, BOS, UNK]] = -np.inf
    probability = np.exp(scores) / np.exp(scores).sum()
    frequency = np.bincount(drawn, minlength=len(scores)) / 2000
    deviation = np.sqrt(probability * (1 - probability) / 2000)
    assert np.all(np.abs(frequency - probability) <= 4.5 * deviation + 1e-9)


def test_the_same_seed_writes_the_same_and_another_something_else(network):
    one, two = Writer(network, MEM_LEN), Writer(network, MEM_LEN)
    written = [list(each.write(PROMPT, 20, seed)) for each, seed in ((one, 3), (one, 4), (two, 3))]
    assert written[0] == written[2] != written[1]


def test_compiled_and_graph_mode_write_the_same(search_run):
    texts = []
    for compiled in (False, True):
        model, _ = TrainedRun(search_run).network(static_shapes=compiled)
        writer = Writer(model, MEM_LEN, jit_compile=compiled)
        texts.append(list(writer.write(PROMPT, 8, seed=1, top_k=20, top_p=0.9)))
    assert texts[0] == texts[1]


def test_top_k_and_top_p_keep_the_most_likely_ids():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=50).astype(np.float32) * 2
        probability = np.exp(scores) / np.exp(scores).sum()
        order = np.argsort(-scores)
        for k in (1, 7, 50, 80):
            kept = writer.keep_top_k(scores, k).numpy()
            assert set(np.flatnonzero(np.isfinite(kept))) == set(order[:k])
            assert np.array_equal(kept[order[:k]], scores[order[:k]])
        for p in (1e-6, 0.3, 0.9, 0.999):
            size = 1 + np.sum(np.cumsum(probability[order])[:-1] < p)
            kept = writer.keep_top_p(scores, p).numpy()
            assert set(np.flatnonzero(np.isfinite(kept))) == set(order[:size])


def test_a_token_sees_as_far_back_as_the_last_of_a_window_in_training():
    seen = np.sum(score_bias(seq_len=8, mem_len=6, filled=6).numpy()[-1] == 0)
    assert writer.memory_length(mem_len=6, seq_len=8) == seen - 1  # itself is not in the memory


def test_the_cost_of_a_token_does_not_grow(network):
    traces = []
    writer = Writer(network, MEM_LEN)
    following = writer.next
    writer._compiled = tf.function(lambda *arguments: traces.append(1) or following(*arguments))
    memory, shapes = network.empty_memory(1, MEM_LEN), set()
    for position in (0, 1, 900):
        settings = map(tf.constant, (position, 0, 1.0, 0, 1.0))
        _, new_memory = writer._compiled(tf.constant(5), memory, *settings)
        shapes.add(tuple(new_memory.shape))
    assert len(traces) == 1 and len(shapes) == 1


def test_on_the_console(search_run):
    run, prompt, num_tokens = f"--run={search_run}", "Ωmega and a word", "--num_tokens=6"
    given = [run, f"--prompt={prompt}", num_tokens, "--seed=5"]
    one, two = (run_command(generate, *given, f"--num_samples={n}") for n in (1, 2))
    assert one.returncode == 0 and one.stderr == "" and one.stdout.startswith(prompt)
    assert two.stdout.startswith(one.stdout) and two.stdout.count("\n") == 2
    assert len(set(two.stdout.splitlines())) == 2
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(search_run / "tokenizer.model"))
    model, _ = TrainedRun(search_run).network()
    written = list(Writer(model, mem_len=6 + 8 - 1).write(pieces.encode(prompt), 6, 5))
    text = b"".join(piece_bytes(pieces.id_to_piece(token)) for token in written)
    assert one.stdout == prompt + text.decode(errors="replace") + "\n"
    # The whole process, which reads what is typed.
    command = [sys.executable, PROJECT / "generate.py", run, num_tokens, "--seed=5"]
    typed = subprocess.run(
        command, input=f"{prompt}\n\n  \ntwo ? é 红 ☃\n", capture_output=True, text=True)
    assert typed.returncode == 0 and typed.stderr == ""
    assert typed.stdout.startswith(one.stdout + "two ? é 红 ☃") and typed.stdout.count("\n") == 2


def piece_bytes(piece):
    if piece.startswith("<0x"):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace("▁", " ").encode()


def test_a_prompt_of_several_lines_is_read_as_training_reads_a_text(
    search_run, data_dir, monkeypatch
):
    tokenizer, prompts = Tokenizer(data_dir / "tokenizer.model"), []
    monkeypatch.setattr(Writer, "write", lambda self, prompt, *settings: (
        prompts.append(prompt.tolist()) or iter([EOS, 9])))
    text = "the city\nof the\u2028old "
    done = run_command(generate, f"--run={search_run}", f"--prompt={text}")
    lines = ids_of(tokenizer, "the city", False), ids_of(tokenizer, "of the old", False)
    assert prompts == [[*lines[0], *lines[1]]]
    piece = "".join(tokenizer.decode([9]))
    assert done.returncode == 0 and done.stdout == f"{text.rstrip(' ')}\n{piece}\n"


def test_a_prompt_that_is_not_utf8_is_refused_in_one_line(search_run):
    run = f"--run={search_run}"
    given = run_command(generate, run, "--prompt=caf\udce9")  # as Python reads the byte E9
    typed = run_command(generate, run, stdin=b"caf\xe9\n")
    assert one_line(given) == "error: the value of --prompt is not UTF-8\n"
    assert one_line(typed) == "error: the prompt is not UTF-8\n"


@pytest.mark.parametrize("flags, message", [
    (["--prompt=  "], "the prompt is empty"),
    (["--prompt=x", "--top_p=1.5"], "flag --top_p=1.5"),
    (["--prompt=x", "--top_p=0"], "flag --top_p=0"),
    (["--prompt=x", "--top_k=-1"], "flag --top_k=-1"),
    (["--prompt=x", "--temperature=1e-9"], "temperature must be 0, or from 0.001 to 1000"),
    (["--prompt=x", "--temperature=nan"], "--temperature=nan is out of range"),
    (["--prompt=x", "--checkpoint=worst"], "no checkpoint 'worst'")])
def test_mistakes_end_in_one_line(flags, message, search_run):
    assert message in one_line(run_command(generate, f"--run={search_run}", *flags))
