"""The signatures of a SavedModel: functions of B texts that do not need this repository."""

import keras
import tensorflow as tf

from training.language_model import LanguageModel
from training.writer import ranges


def signatures(language_model: LanguageModel, dtype: tf.DType) -> tuple[tf.Module, dict]:
    """The module to save and its functions: `score` and `generate`.

    The texts of a batch are processed one after another, so none affects another. The module stores
    weights as `dtype` and casts them to float32; layers compute in the precision of the network.
    """
    model, module = language_model.model, tf.Module()
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
        needed = ranges(num_tokens, seed, temperature, top_k, top_p)
        prompt = checked(checked_utf8(prompt), needed)
        with stored_weights():
            text = tf.map_fn(
                lambda prompt: language_model.continued(
                    prompt, num_tokens, seed, temperature, top_k, top_p), prompt)
        return {"text": text}

    return module, {"score": score, "generate": generate}


def checked_utf8(text):
    """Texts [B], or an error in the graph if one is not UTF-8."""
    as_read = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")  # [B]
    return checked(text, {"the text is not UTF-8": tf.reduce_all(as_read == text)})


def checked(tensor, requirements: dict):
    """The same tensor, or an error in the graph that names the first requirement not met."""
    checks = [tf.debugging.Assert(is_met, [needed]) for needed, is_met in requirements.items()]
    with tf.control_dependencies(checks):
        return tf.identity(tensor)
