"""The direction of a gradient feature: the plain gradient, its sign, or the step that Adam would make of it.

Directions work on one weight's coordinates at a time, each with its slice of the optimizer's moments.

Shape suffixes: B batch, p coordinates of one weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from influray.protocols import ArtifactMismatch

if TYPE_CHECKING:
    from influray.model.checkpoints import AdamMoments
    from influray.model.tracked_weights import TrackedWeight

EpsilonMode = Literal["less", "adamw"]
Direction = Callable[["TrackedWeight", Tensor], Tensor]  # (weight, gradient [B, p]) -> direction [B, p]


class AdamDirection:
    """The step that Adam would make of each example's gradient alone, up to the learning rate: [B, p] -> [B, p].

    m' = beta1 m + (1 - beta1) g;  v' = beta2 v + (1 - beta2) g^2;  the result is m' / sqrt(v' + epsilon) in mode
    "less" and m' / (sqrt(v') + epsilon) in mode "adamw". Without `momentum` the term beta1 m, which all examples
    share, is left out of m'. Both parts of the fraction are divided by sqrt(1 - beta2) once, in the moments, so that
    no gradient need be: 0.8 to 1.4 ns a coordinate in place of 1.5 to 2.0 (one CPU thread).

    Source: LESS, arXiv 2402.04333, as its code has it (princeton-nlp/LESS collect_grad_reps.py). Like that code and
    unlike torch.optim.Adam there is no bias correction; "adamw" puts epsilon where torch.optim.AdamW has it.
    """

    def __init__(
        self,
        exp_avg_p: Tensor,
        exp_avg_sq_p: Tensor,
        *,
        beta1: float,
        beta2: float,
        epsilon: float,
        epsilon_mode: EpsilonMode = "less",
        momentum: bool = True,
    ) -> None:
        root = math.sqrt(1 - beta2)
        inside, self.outside = (epsilon, 0.0) if epsilon_mode == "less" else (0.0, epsilon / root)
        self.gain = (1 - beta1) / root
        self.first_p = exp_avg_p * (beta1 / root) if momentum else None
        self.second_p = (beta2 * exp_avg_sq_p + inside) / (1 - beta2)

    def __call__(self, grad_Bp: Tensor) -> Tensor:
        square_Bp = torch.addcmul(self.second_p, grad_Bp, grad_Bp)
        inverse_Bp = square_Bp.sqrt_().add_(self.outside).reciprocal_() if self.outside else square_Bp.rsqrt_()
        if self.first_p is None:
            return torch.mul(grad_Bp, self.gain).mul_(inverse_Bp)
        return torch.add(self.first_p, grad_Bp, alpha=self.gain).mul_(inverse_Bp)


class AdamDirections:
    """Each weight's own AdamDirection, by the weight's name."""

    def __init__(self, by_name: Mapping[str, AdamDirection]) -> None:
        self._by_name = by_name

    def of(self, weight: TrackedWeight) -> AdamDirection:
        return self._by_name[weight.name]

    def __call__(self, weight: TrackedWeight, grad_Bp: Tensor) -> Tensor:
        return self._by_name[weight.name](grad_Bp)


def plain_direction(weight: TrackedWeight, grad_Bp: Tensor) -> Tensor:
    """Return the gradient itself."""
    del weight
    return grad_Bp


def sign_direction(weight: TrackedWeight, grad_Bp: Tensor) -> Tensor:
    """Return the sign of every coordinate: -1, 0 or 1."""
    del weight
    return grad_Bp.sign()


def make_direction(
    name: Literal["adam", "sgd", "sign"],
    weights: Sequence[TrackedWeight],
    moments: AdamMoments | None,
    *,
    epsilon_mode: EpsilonMode = "less",
    momentum: bool = True,
) -> Direction:
    """Return the direction of that name for the given weights.

    Raises:
        ArtifactMismatch: "adam" without moments, or with moments of other parameters; it names the parameter.
    """
    if name == "sgd":
        return plain_direction
    if name == "sign":
        return sign_direction
    if moments is None:
        raise ArtifactMismatch(
            "features.direction: 'adam' needs the optimizer's moments, which this checkpoint has not; name its "
            "optimizer state in warmup.checkpoints, or set the direction to sgd"
        )
    require_moments(weights, moments)
    by_name = {
        w.name: AdamDirection(
            _flat(moments.exp_avg[w.name], w),
            _flat(moments.exp_avg_sq[w.name], w),
            beta1=moments.beta1,
            beta2=moments.beta2,
            epsilon=moments.epsilon,
            epsilon_mode=epsilon_mode,
            momentum=momentum,
        )
        for w in weights
    }
    return AdamDirections(by_name)


def require_moments(weights: Sequence[TrackedWeight], moments: AdamMoments) -> None:
    """Raise ArtifactMismatch unless the moments are those of exactly these weights, finite and of their shapes."""
    if not (0 <= moments.beta1 < 1 and 0 <= moments.beta2 < 1):
        raise ArtifactMismatch(
            f"moments: Adam's betas are {moments.beta1} and {moments.beta2}; they must be at least 0 and below 1"
        )
    for kind, table in (("exp_avg", moments.exp_avg), ("exp_avg_sq", moments.exp_avg_sq)):
        for weight in weights:
            moment, shape = table.get(weight.name), tuple(weight.module.weight.shape)
            if moment is None:
                raise ArtifactMismatch(
                    f"moments: no {kind} of {weight.name}; the optimizer state belongs to an adapter with other "
                    "targets (model.lora.targets)"
                )
            if tuple(moment.shape) != shape:
                raise ArtifactMismatch(
                    f"moments: {kind} of {weight.name} has shape {tuple(moment.shape)}, the adapter has {shape}; the "
                    "optimizer state belongs to an adapter of another rank or base (model.lora.r)"
                )
            if not bool(torch.isfinite(moment).all()) or (kind == "exp_avg_sq" and bool((moment < 0).any())):
                raise ArtifactMismatch(
                    f"moments: {kind} of {weight.name} is not finite or negative; the training it is from went wrong"
                )
        extra = sorted(set(table) - {weight.name for weight in weights})
        if extra:
            raise ArtifactMismatch(
                f"moments: {kind} of {extra[0]}, which the adapter has not; the optimizer state belongs to an adapter "
                "with other targets (model.lora.targets)"
            )


def epsilon_share(moments: AdamMoments, epsilon_mode: EpsilonMode = "less") -> float:
    """Return the share of coordinates, in [0, 1], where epsilon outweighs the second moment in the denominator.

    That is epsilon > v' in mode "less" and epsilon > sqrt(v') in mode "adamw", with v' = beta2 v, its value as the
    gradient goes to zero: the share of an example can only be lower. Near 1, Adam's direction is the momentum-mixed
    plain gradient, and its scaling is off.
    """
    floor = moments.epsilon if epsilon_mode == "less" else moments.epsilon**2
    below = sum(int((table.double() * moments.beta2 < floor).sum()) for table in moments.exp_avg_sq.values())
    total = sum(table.numel() for table in moments.exp_avg_sq.values())
    return below / total


def _flat(moment: Tensor, weight: TrackedWeight) -> Tensor:
    parameter = weight.module.weight
    return moment.reshape(-1).to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))
