"""Optimizers and schedules: how far each variable moves at each step."""

import math
from typing import Callable

import keras
import tensorflow as tf

from training.settings import Settings


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam in one operation for each variable.

    Kingma & Ba 2014, in the form at the end of section 2. Dense gradients only, and no `amsgrad`.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step, beta2_power=self.beta_2**step, lr=learning_rate,
            beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon, grad=gradient)


def build_optimizer(settings: Settings, name: str, learning_rate: Callable,
                    variables: list) -> keras.optimizers.Optimizer:
    """An optimizer of `variables`, whose name is `name`; `learning_rate` takes no arguments.

    Weight decay is apart from the gradient (Loshchilov & Hutter 2017, "Decoupled weight decay
    regularization"), and of matrices alone: no bias or gain, and no architecture.
    """
    kinds = {
        "adam": FusedAdam, "rmsprop": keras.optimizers.RMSprop, "sgd": keras.optimizers.SGD}

    class Clipped(kinds[settings.opt_name]):
        """Clips the gradient that all replicas have together; Keras clips each replica's part."""

        def update_step(self, gradient, variable, learning_rate):
            if settings.clipvalue:
                gradient = tf.clip_by_value(gradient, -settings.clipvalue, settings.clipvalue)
            if settings.clipnorm:
                gradient = tf.clip_by_norm(gradient, settings.clipnorm)
            super().update_step(gradient, variable, learning_rate)

    optimizer = Clipped(
        learning_rate=learning_rate, weight_decay=settings.weight_decay or None, name=name)
    optimizer.exclude_from_weight_decay(var_list=[
        each for each in variables if name == "architecture" or len(each.shape) < 2])
    optimizer.build(variables)
    return optimizer


def learning_rate_schedule(max_lr: float, warmup_steps: int, total_steps: int) -> Callable:
    """Learning rate by step: linear from 0 to `max_lr`, then a cosine to 0 at `total_steps`."""
    decay_steps = max(1, total_steps - warmup_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps, warmup_target=max_lr, warmup_steps=warmup_steps)


def tau_schedule(tau_start: float, tau_end: float, total_steps: int) -> Callable:
    """Temperature by step: from `tau_start` exponentially to `tau_end` at `total_steps`."""
    def tau_at(step):
        return tau_start * (tau_end / tau_start) ** (tf.cast(step, tf.float32) / total_steps)

    return tau_at


def trains_architecture(step: int, first_step: int, share: float) -> bool:
    """Whether a step of an alternating search trains the architecture.

    From `first_step` on, `share` of them do, evenly spread.
    """
    count = step - first_step
    return count >= 0 and math.floor((count + 1) * share) > math.floor(count * share)
