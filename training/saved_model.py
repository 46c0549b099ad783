"""The signatures of a SavedModel: functions of text that do not need this repository.

B texts, N tokens of the longest text, V vocabulary, A blocks with memory, M memory length, D model
width.
"""

import keras
import tensorflow as tf

from training.language_model import LanguageModel


def signatures(language_model: LanguageModel, dtype: tf.DType) -> tuple[tf.Module, dict]:
    """The module to save and its functions: `score`, `generate`, `next`, `tokenize`, `detokenize`.

    The texts of a batch are processed one after another, so none affects another.

    Args:
      language_model: the network and its tokenizer.
      dtype: the type in which weights are stored. The functions compute in float32.
    """
    model, writer = language_model.model, language_model.writer
    module = tf.Module()
    module.sentencepiece = language_model.tokenizer.sentencepiece
    module.stored = [tf.Variable(tf.cast(weight.value, dtype)) for weight in model.weights]

    def stored_weights():
        values = [tf.cast(value, tf.float32) for value in module.stored]
        return keras.StatelessScope(state_mapping=list(zip(model.weights, values)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def score(text):
        """Nats, scored tokens and bytes of texts [B]. docs/data.md says how bytes are counted."""
        text = tf.strings.regex_replace(checked_utf8(text), r"^\x{feff}", "")
        text = tf.strings.regex_replace(text, r"\r\n?", "\n")

        def nats_and_tokens(text):
            nll = language_model.token_nll(language_model.ids(text))
            return tf.reduce_sum(nll), tf.size(nll)

        with stored_weights():
            nats, tokens = tf.map_fn(
                nats_and_tokens, text, fn_output_signature=(tf.float32, tf.int32))
        return {"nats": nats, "tokens": tokens, "bytes": tf.strings.length(text)}

    @tf.function(input_signature=[
        tf.TensorSpec([None], tf.string, "prompt"), tf.TensorSpec([], tf.int32, "num_tokens"),
        tf.TensorSpec([], tf.float32, "temperature"), tf.TensorSpec([], tf.int32, "top_k"),
        tf.TensorSpec([], tf.float32, "top_p"), tf.TensorSpec([], tf.int32, "seed")])
    def generate(prompt, num_tokens, temperature, top_k, top_p, seed):
        """Prompts [B] with their continuations."""
        at_least = tf.debugging.assert_greater_equal
        checks = [
            at_least(num_tokens, 1, "num_tokens must be 1 or more"),
            at_least(temperature, 0.0, "temperature must be 0 or more"),
            at_least(top_k, 0, "top_k must be 0 or more"),
            at_least(seed, 0, "seed must be 0 or more"),
            tf.debugging.Assert((top_p > 0) & (top_p <= 1), ["top_p must be above 0, at most 1"])]
        with tf.control_dependencies(checks):
            prompt = checked_utf8(prompt)
        with stored_weights():
            text = tf.map_fn(
                lambda prompt: language_model.continued(
                    prompt, num_tokens, seed, temperature, top_k, top_p), prompt)
        return {"text": text}

    memory_shape = [model.num_memories, writer.mem_len, model.sizes.d_model]  # [A, M, D]

    @tf.function(input_signature=[
        tf.TensorSpec([None], tf.int32, "token"),
        tf.TensorSpec([None, *memory_shape], tf.float32, "memory"),
        tf.TensorSpec([None], tf.int32, "filled")])
    def next_token(token, memory, filled):
        """Log-probabilities [B, V] of the tokens after tokens [B], and the memory [B, A, M, D]."""
        vocab_size, mem_len = language_model.tokenizer.vocab_size, writer.mem_len
        token = in_range("token", token, vocab_size - 1)
        filled = in_range("filled", filled, mem_len)

        def one(inputs):
            token, memory, filled = inputs
            memory = tf.cast(memory[:, None], model.compute_dtype)  # [A, 1, M, D]
            log_prob, memory = writer.log_prob(token, memory, filled)
            return log_prob, tf.cast(memory[:, 0], tf.float32)

        log_prob = tf.TensorSpec([vocab_size], tf.float32)
        with stored_weights():
            log_prob, memory = tf.map_fn(
                one, (token, memory, filled),
                fn_output_signature=(log_prob, tf.TensorSpec(memory_shape, tf.float32)))
        return {"log_prob": log_prob, "memory": memory}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def tokenize(text):
        """The ids of texts [B]: [B, N], padded with 0."""
        ids = tf.map_fn(language_model.ids, checked_utf8(text),
                        fn_output_signature=tf.RaggedTensorSpec([None], tf.int32, ragged_rank=0))
        return {"token": ids.to_tensor()}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, "token")])
    def detokenize(token):
        """The texts [B] of ids [B, N]; 0 has no text."""
        token = in_range("token", token, language_model.tokenizer.vocab_size - 1)
        text = tf.map_fn(
            lambda ids: language_model.tokenizer.detokenize(ids, within_line=tf.constant(False)),
            token, fn_output_signature=tf.string)
        return {"text": text}

    return module, {"score": score, "generate": generate, "next": next_token,
                    "tokenize": tokenize, "detokenize": detokenize}


def checked_utf8(text):
    """Texts [B], or an error in the graph if one is not UTF-8."""
    as_read = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")  # [B]
    check = tf.debugging.Assert(tf.reduce_all(as_read == text), ["the text is not UTF-8"])
    with tf.control_dependencies([check]):
        return tf.identity(text)


def in_range(name: str, values, most: int):
    """The same integers, or an error in the graph unless all are from 0 to `most`."""
    is_met = tf.reduce_all((values >= 0) & (values <= most))
    check = tf.debugging.Assert(is_met, [f"{name} must be from 0 to {most}"])
    with tf.control_dependencies([check]):
        return tf.identity(values)
