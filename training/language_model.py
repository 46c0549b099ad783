"""A network with its tokenizer, as functions of text.

N tokens of a text, T sequence length, M memory length, H heads, A blocks that need memory, D model
width.
"""

from typing import Iterator

import numpy as np
import tensorflow as tf

from support.errors import InputError
from support.tokenization import PAD, Tokenizer
from training.scoring import filled_memory, window_nll
from training.writer import EMPTY_PROMPT, Writer, memory_length


class LanguageModel:
    """Scores, continues and inspects text.

    Args:
      model: the network.
      tokenizer: the tokenizer that it was trained with.
      add_eos: whether a line end is a token, as in training.
      seq_len: T, the tokens to read at once.
      jit_compile: compile the writer with XLA.

    Attributes:
      model, tokenizer: as given.
      writer: continues ids; it sees as far back as the network does in training.
    """

    def __init__(self, model, tokenizer: Tokenizer, add_eos: bool, seq_len: int,
                 jit_compile: bool = False):
        self.model, self.tokenizer = model, tokenizer
        self.writer = Writer(model, memory_length(model.sizes.mem_len, seq_len), jit_compile)
        self._add_eos, self._seq_len = add_eos, seq_len
        self._token_nll = tf.function(self.token_nll, input_signature=[
            tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.float32)])

    def encode(self, text: str) -> tuple[np.ndarray, int]:
        """The ids of a text, int32 [N], and the number of characters unknown to the tokenizer."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, not {type(text).__name__}")
        ids, _, unknown = self.tokenizer.tokenize(tf.constant(text), self._add_eos)
        return ids.numpy(), int(unknown)

    def log_prob(self, text: str) -> tuple[list[str], np.ndarray]:
        """The log-probability of each token of a text of any length, given the tokens before it.

        The network sees these as far back as its memory reaches.

        Returns:
          The text of each token, N; and its log-probability, float32 [N], in nats. The first token
          is not predicted: its value is NaN.
        """
        ids, _ = self.encode(text)
        nll = self._token_nll(tf.constant(ids), tf.constant(self.model.tau)).numpy()
        return self._texts(ids), np.concatenate([[np.nan], -nll])[:len(ids)].astype(np.float32)

    def generate(self, prompt: str, num_tokens: int = 100, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0) -> str:
        """`stream` as a whole. The same seed gives the same text."""
        return "".join(self.stream(prompt, num_tokens, temperature, top_k, top_p, seed))

    def stream(self, prompt: str, num_tokens: int = 100, temperature: float = 1.0, top_k: int = 0,
               top_p: float = 1.0, seed: int = 0) -> Iterator[str]:
        """Yields the text of `generate` in parts: the prompt, then the text of each token.

        Args:
          prompt: of any length.
          num_tokens: to write.
          temperature: below 1 favours likely tokens; 0 always takes the most likely one.
          top_k: draw from this many of the most likely tokens; 0 for all.
          top_p: draw from the most likely tokens with this total probability.
          seed: below 2^31.

        Raises:
          InputError: the prompt is empty, or another argument is out of range.
        """
        ids, _ = self.encode(prompt)
        if not len(ids):
            raise InputError(EMPTY_PROMPT)
        shown = self.tokenizer.shown(tf.constant(prompt)).numpy().decode()
        yield shown
        written = self.writer.write(ids, num_tokens, seed, temperature, top_k, top_p)
        yield from self.tokenizer.decode(written, within_line=not shown.endswith(("\n", "\r")))

    def attention(self, text: str) -> tuple[np.ndarray, list[str]]:
        """The attention weights of each token of a text, over the memory and the text.

        The network reads T tokens at once: a token attends to the tokens before it in its own
        window, and to the M tokens before that window.

        Returns:
          Weights, [attending blocks, H, N, M + N]: the last axis is the memory before the text,
          which is empty, then the text. And the text of each token, N.
        """
        ids, _ = self.encode(text)
        M, T, N = self.model.sizes.mem_len, self._seq_len, len(ids)
        attending = sum(block.attends for block in self.model.blocks)
        weights = np.zeros([attending, self.model.sizes.num_heads, N, M + N], np.float32)
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
        """The text of each id [N]; empty until the bytes of a character are complete."""
        return list(self.tokenizer.decode(ids))[:len(ids)]

    # ----------------------------------------------------------------------------------------------
    # Functions of tensors, for graphs

    def ids(self, text):
        """The ids of a text, int32 [N]."""
        return self.tokenizer.tokenize(text, self._add_eos)[0]

    def token_nll(self, ids, tau=None):
        """The negative log-likelihood of each id but the first, given the ids before it.

        For ids [N], it is float32 [N - 1], in nats. `tau` is the temperature of the mixtures; None
        for the network's own.
        """
        T = self._seq_len
        targets = tf.maximum(tf.size(ids) - 1, 0)
        windows = -(-targets // T)
        stream = tf.pad(ids, [[0, windows * T + 1]], constant_values=PAD)  # [N + windows T + 1]
        nll = tf.TensorArray(tf.float32, windows, element_shape=[1, T])
        memory = self.model.empty_memory(1)  # [A, 1, M, D]
        for number in tf.range(windows):
            window = tf.reshape(stream[number * T:(number + 1) * T + 1], [1, T + 1])
            filled = filled_memory(self.model, window, number)
            window_loss, memory = window_nll(self.model, window, memory, filled, tau)
            nll = nll.write(number, window_loss)
        return tf.reshape(nll.stack(), [-1])[:targets]

    def continued(self, prompt, num_tokens, seed, temperature, top_k, top_p):
        """`generate` for scalar tensors; the prompt and the result are UTF-8.

        Raises:
          tf.errors.InvalidArgumentError: the prompt has no token.
        """
        ids = self.ids(prompt)  # [N]
        with tf.control_dependencies([tf.debugging.assert_positive(tf.size(ids), EMPTY_PROMPT)]):
            ids = tf.identity(ids)
        last = tf.size(ids) - 1
        memory, drawn = self.model.empty_memory(1, self.writer.mem_len), tf.constant(0)
        written = tf.TensorArray(tf.int32, num_tokens, element_shape=[])
        for position in tf.range(last + num_tokens):
            token = tf.where(position <= last, ids[tf.minimum(position, last)], drawn)
            drawn, memory = self.writer.next(
                token, memory, position, seed, temperature, top_k, top_p)
            if position >= last:
                written = written.write(position - last, drawn)
        shown = self.tokenizer.shown(prompt)
        within_line = ~tf.strings.regex_full_match(shown, r"(?s:.*[\n\r])")
        text = self.tokenizer.detokenize(written.stack(), within_line)
        return tf.strings.join([shown, text])
