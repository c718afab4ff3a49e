"""The direction of a gradient feature: the plain gradient, its sign, or the step that Adam would make of it.

Directions work on one weight's coordinates at a time, each with its slice of the optimizer's moments.

Shape suffixes: B batch, p coordinates of one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from influray.protocols import ArtifactMismatch

if TYPE_CHECKING:
    from influray.model.checkpoints import AdamMoments
    from influray.model.example_gradients import TrackedWeight

EpsilonMode = Literal["less", "adamw"]
Direction = Callable[["TrackedWeight", Tensor], Tensor]  # (weight, gradient [B, p]) -> direction [B, p]


def adam_direction(
    grad_Bp: Tensor,
    exp_avg_p: Tensor,
    exp_avg_sq_p: Tensor,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    epsilon_mode: EpsilonMode = "less",
    momentum: bool = True,
) -> Tensor:
    """Return the step that Adam would make for each example alone, up to the learning rate, [B, p].

    m' = beta1 m + (1 - beta1) g;  v' = beta2 v + (1 - beta2) g^2;  the result is m' / sqrt(v' + epsilon) in mode
    "less" and m' / (sqrt(v') + epsilon) in mode "adamw". Without `momentum` the term beta1 m, which all examples
    share, is left out of m'.

    Source: LESS, arXiv 2402.04333, as its code has it (princeton-nlp/LESS collect_grad_reps.py). Like that code and
    unlike torch.optim.Adam there is no bias correction; "adamw" puts epsilon where torch.optim.AdamW has it.
    """
    first = grad_Bp * (1 - beta1)
    if momentum:
        first += beta1 * exp_avg_p
    second = torch.addcmul(beta2 * exp_avg_sq_p, grad_Bp, grad_Bp, value=1 - beta2)
    root = second.add_(epsilon).sqrt_() if epsilon_mode == "less" else second.sqrt_().add_(epsilon)
    return first.div_(root)


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
        return lambda _, grad_Bp: grad_Bp
    if name == "sign":
        return lambda _, grad_Bp: grad_Bp.sign()
    if moments is None:
        raise ArtifactMismatch(
            "features.direction: 'adam' needs the optimizer's moments, which this checkpoint has not; name its "
            "optimizer state in warmup.checkpoints, or set the direction to sgd"
        )
    require_moments(weights, moments)
    flat = {w.name: (_flat(moments.exp_avg[w.name], w), _flat(moments.exp_avg_sq[w.name], w)) for w in weights}

    def adam(weight: TrackedWeight, grad_Bp: Tensor) -> Tensor:
        return adam_direction(
            grad_Bp,
            *flat[weight.name],
            beta1=moments.beta1,
            beta2=moments.beta2,
            epsilon=moments.epsilon,
            epsilon_mode=epsilon_mode,
            momentum=momentum,
        )

    return adam


def require_moments(weights: Sequence[TrackedWeight], moments: AdamMoments) -> None:
    """Raise ArtifactMismatch unless the moments are those of exactly these weights, finite and of their shapes."""
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
