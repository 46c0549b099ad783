"""Optimizers and schedules: how far each variable moves at each step."""

import math
from typing import Callable

import keras
import tensorflow as tf

from support.errors import InputError
from training.settings import Settings


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam as one operation per variable, for dense gradients, without `amsgrad`.

    Kingma & Ba 2014, in the form at the end of section 2.
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
    """An optimizer of `variables`, named `name`; `learning_rate` takes no arguments.

    Weight decay is decoupled from the gradient (Loshchilov & Hutter 2017, "Decoupled weight decay
    regularization") and applies only to matrices, not to biases, gains or the architecture.

    Raises:
      InputError: Keras has no optimizer of the name `settings.opt_name`.
    """
    try:
        kind = type(keras.optimizers.get(settings.opt_name))
    except ValueError:
        raise InputError(f"--opt_name={settings.opt_name}: Keras has no such optimizer") from None

    class Clipped(FusedAdam if kind is keras.optimizers.Adam else kind):
        """Clips the sum of the gradients of all replicas; Keras clips each replica's gradient."""

        def update_step(self, gradient, variable, learning_rate):
            if settings.clipnorm:
                gradient = tf.clip_by_norm(gradient, settings.clipnorm)
            super().update_step(gradient, variable, learning_rate)

    optimizer = Clipped(
        learning_rate=learning_rate, weight_decay=settings.weight_decay or None, name=name)
    optimizer.exclude_from_weight_decay(var_list=[
        each for each in variables if name == "architecture" or len(each.shape) < 2])
    optimizer.build(variables)
    return optimizer


def parameter_groups(model, settings: Settings, learning_rate: Callable) -> dict:
    """{name: (optimizer, variables)} of the weights and, if it is trained, the architecture."""
    architecture = model.architecture_parameters
    theirs = {variable.path for variable in architecture}
    weights = [each for each in model.trainable_variables if each.path not in theirs]
    groups = {"weights": (build_optimizer(settings, "weights", learning_rate, weights), weights)}
    if architecture and settings.search != "uniform":
        optimizer = build_optimizer(
            settings, "architecture", lambda: learning_rate() * settings.arch_lr_factor,
            architecture)
        groups["architecture"] = optimizer, architecture
    return groups


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

    From `first_step` on, a fraction `share` of the steps does, evenly spaced.
    """
    count = step - first_step
    return count >= 0 and math.floor((count + 1) * share) > math.floor(count * share)
