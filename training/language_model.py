"""A network and its tokenizer as functions from text to numbers and text, inside of a graph.

N tokens of a text, T sequence length, M memory length, A blocks that need memory, D model width, V
vocabulary.
"""

import tensorflow as tf

from support.tokenization import PAD, Tokenizer
from training.scoring import filled_memory, window_nll
from training.writer import EMPTY_PROMPT, Writer, memory_length


class LanguageModel:
    """What a network makes of a text. Every function may be called eagerly or from a `tf.function`.

    Args:
      model: the network.
      tokenizer: the one that it was trained with.
      add_eos: whether a line end is a token, as in training.
      seq_len: T, the tokens that it reads at once.
      jit_compile: compile the writer with XLA.

    Attributes:
      model, tokenizer: as given.
      writer: continues ids; it sees as far back as the network has in training.
    """

    def __init__(self, model, tokenizer: Tokenizer, add_eos: bool, seq_len: int,
                 jit_compile: bool = False):
        self.model, self.tokenizer = model, tokenizer
        self.writer = Writer(model, memory_length(model.sizes.mem_len, seq_len), jit_compile)
        self._add_eos, self._seq_len = add_eos, seq_len

    def token_nll(self, text):
        """The negative log-likelihood of each token but the first, given all before it.

        Args:
          text: UTF-8, a scalar string tensor of any length.

        Returns:
          The ids, int32 [N]; and float32 [N - 1], in nats.
        """
        ids, T = self.ids(text), self._seq_len  # [N]
        targets = tf.maximum(tf.size(ids) - 1, 0)
        windows = -(-targets // T)
        stream = tf.pad(ids, [[0, windows * T + 1]], constant_values=PAD)  # [N + windows T + 1]
        nll = tf.TensorArray(tf.float32, windows, element_shape=[1, T])
        memory = self.model.empty_memory(1)  # [A, 1, M, D]
        for number in tf.range(windows):
            window = tf.reshape(stream[number * T:(number + 1) * T + 1], [1, T + 1])
            filled = filled_memory(self.model, window, number)
            window_loss, memory = window_nll(self.model, window, memory, filled, tau=None)
            nll = nll.write(number, window_loss)
        return ids, tf.reshape(nll.stack(), [-1])[:targets]

    def continued(self, prompt, num_tokens, seed, temperature, top_k, top_p):
        """A prompt and how the network goes on, as generate.py writes it.

        Args:
          prompt: UTF-8, a scalar string tensor with one token at least.
          num_tokens: how many tokens to write.
          seed, temperature, top_k, top_p: of `training.writer.draw`.

        Returns:
          A scalar string tensor.

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

    def ids(self, text):
        """The ids of a text, int32 [N]."""
        return self.tokenizer.tokenize(text, self._add_eos)[0]
