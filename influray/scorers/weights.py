"""The weights of the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from influray.protocols import ConfigError


def checkpoint_weights(weights: str | Sequence[float], mean_learning_rates: Sequence[float]) -> tuple[float, ...]:
    """Return one weight per checkpoint, summing to 1.

    `weights` is "learning_rate" (the checkpoints' mean learning rates, as LESS has it), "uniform", or a list. An epoch
    of a single step at the start of the schedule has the rate 0; its checkpoint weighs nothing.

    Raises:
        ConfigError: a list of another length, a weight in it that is not above 0, another word, or no rate above 0.
    """
    count = len(mean_learning_rates)
    if weights == "learning_rate":
        if count and not any(mean_learning_rates):
            raise ConfigError("attribution.weights: all checkpoints were trained at learning rate 0; set it to uniform")
        return _normalised(mean_learning_rates, least=0.0)
    if weights == "uniform":
        return _normalised([1.0] * count)
    if isinstance(weights, str):
        raise ConfigError(
            f"attribution.weights: found {weights!r}, expected learning_rate, uniform or a list of {count} numbers"
        )
    if len(weights) != count:
        raise ConfigError(f"attribution.weights: {len(weights)} weights for {count} checkpoints; give one for each")
    return _normalised(weights)


def _normalised(weights: Sequence[float], least: float = math.ulp(0.0)) -> tuple[float, ...]:
    values = [float(weight) for weight in weights]
    for index, value in enumerate(values):
        if not least <= value < math.inf:
            raise ConfigError(f"attribution.weights.{index}: found {value!r}, expected a number above 0")
    if not values:
        raise ConfigError("attribution.weights: there is no checkpoint to weigh")
    total = math.fsum(values)
    return tuple(value / total for value in values)
