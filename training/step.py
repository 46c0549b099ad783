"""A training step: loss, gradients, update; and many steps as one program.

B batch, T sequence length, M memory length, A blocks that need memory, D model width, R replicas, P
shares of a batch, S searched blocks, K layer types, W windows of one execution.
"""

from typing import Callable

import tensorflow as tf

from layers.draws import Draws
from training.scoring import filled_memory, real_targets, window_nll
from training.settings import Settings


class TrainingStep:
    """Trains the variables of `groups` and advances `state`.

    Each of the R replicas computes its own rows of a batch, in `settings.accumulate` parts, one
    after another. Noise, loss and gradients are those of the whole batch, whatever the number of
    shares P.

    On one device, with `jit_compile`, W steps are one program. XLA does not compile communication
    between replicas: with several, each replica compiles the loss and the gradients of a step.

    Args:
      model: the network.
      settings: see `Settings`.
      groups: optimizer and variables of each group of parameters, by name.
      state: the state of the training; `step`, `latency` and the totals are used.
      tau_at: the temperature by step.
      steps_per_epoch: the number of steps after which the memory is emptied.
      strategy: the replicas.
      jit_compile: compile with XLA.

    Attributes:
      shares: P.
      run_many: `steps`, compiled.
    """

    def __init__(self, model, settings: Settings, groups: dict, state: tf.train.Checkpoint,
                 tau_at: Callable, steps_per_epoch: int, strategy: tf.distribute.Strategy,
                 jit_compile: bool):
        self._model, self._settings, self._groups, self._state = model, settings, groups, state
        self._tau_at, self._steps_per_epoch, self._strategy = tau_at, steps_per_epoch, strategy
        self.shares = strategy.num_replicas_in_sync * settings.accumulate
        one_device = strategy is tf.distribute.get_strategy()
        self.run_many = tf.function(self.steps, jit_compile=(jit_compile and one_device) or None)
        self._compiled_loss_and_gradients = tf.function(
            self.loss_and_gradients, jit_compile=jit_compile or None)

    def steps(self, windows, num_steps, memory, names):
        """Trains for some steps, or until a loss is not finite.

        Args:
          windows: int32 [W, B, T + 1]; the first `num_steps` are used.
          num_steps: a scalar.
          memory: [A, B, M, D].
          names: of the groups of parameters to train.

        Returns:
          The next memory, and whether all losses are finite.
        """
        number, finite = 0, True
        while tf.logical_and(finite, number < num_steps):
            window = self._on_replicas(tf.gather, windows, number)  # [B, T + 1]
            memory, finite = self.step(window, memory, names)
            number += 1
        return memory, finite

    def step(self, window, memory, names):
        """One step with window [B, T + 1] and memory [A, B, M, D].

        Returns:
          The next memory, and whether the loss is finite. If it is not, nothing has changed.
        """
        targets = self._sum(self._on_replicas(num_targets, window))  # []
        nll, new_memory, gradients = self._on_replicas(
            self.replica_loss_and_gradients, window, memory, targets, names)
        nll = self._sum(nll)  # []
        finite = tf.math.is_finite(nll)
        if finite:
            self._on_replicas(self.update, gradients, names)
            for totals in (self._state.line, self._state.epoch, self._state.run):
                totals.add(nll, targets)
            self._state.step.assign_add(1)
            memory = new_memory
        return memory, finite

    def loss_and_gradients(self, window, memory, targets, share, names):
        """Loss and gradients of a share of a batch, [B/P, T + 1], with memory [A, B/P, M, D].

        Returns:
          The summed negative log-likelihood, the next memory, and for each group of parameters the
          gradients of this share's part of the mean over all `targets` of the batch.
        """
        step = tf.convert_to_tensor(self._state.step)
        draws = Draws(self._settings.seed, step, share, self.shares)
        filled = filled_memory(self._model, window, step % self._steps_per_epoch)
        tau = self._tau_at(step)
        with tf.GradientTape() as tape:
            nll, memory = window_nll(self._model, window, memory, filled, tau, draws)
            nll = tf.reduce_sum(nll)  # []
            loss = nll / targets
            if self._settings.latency_weight:
                milliseconds = self.latency(tau, draws, window.shape[0])
                loss += self._settings.latency_weight * milliseconds / self.shares
        gradients = tape.gradient(loss, [self._groups[name][1] for name in names])
        # Dense: if an id occurs twice, Adam must square the sum of its gradients.
        return nll, memory, tf.nest.map_structure(tf.convert_to_tensor, gradients)

    def update(self, gradients, names):
        """Moves each group of parameters by the sum of the gradients of all replicas."""
        for name, own in zip(names, gradients):
            optimizer, variables = self._groups[name]
            own = [tf.identity(gradient) for gradient in own]  # placed on this replica's device
            optimizer.apply(own, variables)

    def latency(self, tau, draws, rows):
        """The expected milliseconds of the sampled layers for a window."""
        sample = self._model.sample(tau, draws, rows)  # [S, K] or [rows, S, K]
        milliseconds = tf.reduce_sum(sample * self._state.latency, axis=[-2, -1])  # [] or [rows]
        return tf.reduce_mean(milliseconds)

    # ----------------------------------------------------------------------------------------------
    # Replicas, and parts of a batch

    def replica_loss_and_gradients(self, window, memory, targets, names):
        """`loss_and_gradients` of the rows of a replica, one part after another."""
        parts = self._settings.accumulate
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * parts
        if parts == 1:
            return self._compiled_loss_and_gradients(window, memory, targets, first, names)
        windows = tf.stack(tf.split(window, parts))  # [parts, B/P, T + 1]
        memories = tf.stack(tf.split(memory, parts, axis=1))  # [parts, A, B/P, M, D]
        nll, new_memory, gradients = self._compiled_loss_and_gradients(
            windows[0], memories[0], targets, first, names)
        new_memories = tf.TensorArray(memory.dtype, parts, element_shape=new_memory.shape)
        new_memories = new_memories.write(0, new_memory)
        for i in tf.range(1, parts):
            more = self._compiled_loss_and_gradients(
                windows[i], memories[i], targets, first + i, names)
            nll += more[0]
            new_memories = new_memories.write(i, more[1])
            gradients = tf.nest.map_structure(tf.add, gradients, more[2])
        return nll, tf.concat(tf.unstack(new_memories.stack(), parts), axis=1), gradients

    def _on_replicas(self, function, *arguments):
        """The results of a function on each replica."""
        return self._strategy.run(function, args=arguments)

    def _sum(self, numbers):
        """The sum over all replicas."""
        return self._strategy.reduce("sum", numbers, axis=None)


def num_targets(window):
    """The number of targets of a window [B, T + 1], padding excluded: float32 []."""
    return tf.reduce_sum(real_targets(window))


class Totals(tf.Module):
    """Sums over the training steps since the last `reset`.

    Attributes:
      nll: the negative log-likelihood, in nats.
      targets: the number of tokens predicted.
      seconds: the time.
    """

    def __init__(self):
        super().__init__()
        self.nll = tf.Variable(0.0, dtype=tf.float64)
        self.targets = tf.Variable(0.0, dtype=tf.float64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)

    @property
    def loss(self) -> float:
        """The mean loss, in nats per token."""
        return float(self.nll) / float(self.targets)

    def add(self, nll, targets):
        """Adds a step."""
        self.nll.assign_add(tf.cast(nll, tf.float64))
        self.targets.assign_add(tf.cast(targets, tf.float64))

    def reset(self):
        for total in (self.nll, self.targets, self.seconds):
            total.assign(0.0)
