"""Gradient features: one projected, unit per-example gradient direction for every row (LESS, arXiv 2402.04333).

The backward hands over one weight's gradients at a time; they are measured, turned into the direction, projected and
dropped, so that memory does not grow with the number of LoRA parameters.

Shape suffixes: B batch, D feature, P parameters (p of one weight).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from influray.features.blocks import feature_block
from influray.features.fused_step import FusedStep, fused_step
from influray.features.inner_step import TorchStep
from influray.features.module_blocks import FactorBlocks, module_blocks
from influray.features.preconditioners import Direction, epsilon_share, make_direction, require_moments
from influray.model.batch import Batch, make_batch
from influray.model.example_gradients import ExampleGradients
from influray.model.tracked_weights import TrackedWeight, linear_weights, lora_weights, of_last_layers
from influray.model.transfers import BatchSender, Results, SentBatch, one_ahead
from influray.protocols import ConfigError, FactorProjector, FeatureBlock, Featurizer, Projector, TokenizedExample
from influray.registry import make as make_method

if TYPE_CHECKING:
    from influray.config import FeaturesConfig
    from influray.model.checkpoints import AdamMoments

log = logging.getLogger(__name__)

StepName = Literal["torch", "fused"]
Stacks = Sequence[Sequence[TokenizedExample]]  # of one batch


class GradientFeaturizer(Featurizer):
    """Projected gradients of LoRA matrices, or of chosen linear layers, at one checkpoint.

    Takes the model over: freezes it and hooks into it.
    `direction` is "adam" (needs `moments`), "sgd" or "sign". `bounds` are where the part of the D numbers of each LoRA
    module begins, and D; (0, D) where they share all. `factors` are as FactorBlocks has them, () where there are none.
    `head` says how logits are made (see ExampleGradients), `epsilon_share` how much of Adam's denominator is epsilon
    (None for other directions). `step` is what adds up a weight's gradients: "fused" on a GPU where FusedStep can take
    them, else "torch"; asked for by name, it is that one.

    Raises:
        ConfigError: the projector's options are wrong, the model has no LoRA matrices that can be tracked, the
            fused step is asked for where it cannot be had, or `features.packing` is on and batches cannot be packed.
        ArtifactMismatch: the moments are missing or not those of the model's adapter.
    """

    columns = ("norm", "grad_norm", "loss")

    def __init__(
        self,
        model: nn.Module,
        features_config: FeaturesConfig,
        moments: AdamMoments | None,
        direction: Literal["adam", "sgd", "sign"],
        device: str | torch.device = "cpu",
        step: Literal["auto"] | StepName = "auto",
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may change its sums
            # Or the backward of the flash_attn package adds up by atomics; PyTorch's own kernels heed _repeatable.
            os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
        chosen = features_config.weights
        weights = lora_weights(model) if chosen == "lora" else linear_weights(model, chosen)
        if features_config.layers != "all":
            if direction == "adam" and moments is not None:
                require_moments(weights, moments)
            weights = of_last_layers(model, weights, features_config.layers_of)
            moments = moments and moments.of([weight.name for weight in weights])
        self._direction: Direction = make_direction(
            direction,
            weights,
            moments,
            epsilon_mode=features_config.adam_epsilon_mode,
            momentum=features_config.adam_momentum,
        )
        self.epsilon_share: float | None = None
        if direction == "adam" and moments is not None:
            self.epsilon_share = epsilon_share(moments, features_config.adam_epsilon_mode)
        settings = features_config.projector
        self.parameters = sum(weight.size for weight in weights)

        def make(dimension: int) -> Projector:
            given = dimension, self.parameters, settings.seed, self.device
            return make_method("projectors", settings.name, settings.options, *given)

        self.bounds: tuple[int, ...] = (0, settings.dimension)
        if features_config.blocks == "module":
            blocks = module_blocks(weights, settings.dimension, make, "features.projector.dimension")
            self._projector, self.bounds = blocks, blocks.bounds
            self.factors = blocks.factors if isinstance(blocks, FactorBlocks) else ()
        else:
            self._projector = make(settings.dimension)
        self._factors = self._projector if isinstance(self._projector, FactorProjector) else None
        if self._factors is not None:
            if direction != "sgd":
                raise ConfigError(
                    f"features.direction: {direction!r} changes every coordinate of a gradient, and the projector "
                    f"{settings.name!r} never forms one; set it to sgd, or take another features.projector.name"
                )
            self._factors.set_layout([(w.offset, w.module.weight.shape[0], w.module.weight.shape[1]) for w in weights])
        self.dimension = self._projector.dimension
        self.step, self.inner_step = _make_step(step, weights, self._direction, self._projector, self.device)
        # Last: what is refused above leaves the model alone.
        self._gradients = ExampleGradients(
            model,
            weights,
            checkpointing=features_config.gradient_checkpointing,
            merging=self._factors is None,
        )
        self._said = False
        if features_config.packing == "on" and self._gradients.packing_problem:
            self.close()
            raise ConfigError(
                f"features.packing: batches of {type(self._gradients.model).__name__} cannot be packed "
                f"({self._gradients.packing_problem}); set it to auto or off"
            )
        self.head = self._gradients.head
        self._sender = BatchSender(self.device)
        dtypes = {weight.module.weight.dtype for weight in weights}
        self._dtype = torch.float64 if torch.float64 in dtypes else torch.float32

    def close(self) -> None:
        """Take the hooks off the model, so that another adapter can be put on it."""
        self._gradients.close()

    def can_pack(self) -> bool:
        """Return whether the model's batches can be packed, and log once why not."""
        problem = self._gradients.packing_problem
        if problem and not self._said:
            log.warning("%s: %s, so batches are padded", type(self._gradients.model).__name__, problem)
            self._said = True
        return not problem

    def compute(self, examples: Sequence[TokenizedExample]) -> FeatureBlock:
        """Return the feature rows of one padded batch, in its order, from one forward and one backward.

        A row whose loss, gradient or feature is not finite, or whose feature is zero, goes to `failures` with the
        reason, and the others are as they would be without it.
        """
        return self.compute_packed([examples])

    def compute_packed(self, stacks: Stacks) -> FeatureBlock:
        """Return the feature rows of one packed batch, as `compute`: stacks are padded each for itself.

        With more than one, the model must be one that can pack.
        """
        return self._begin(*self._send(stacks))()

    def compute_all(self, batches: Iterable[Sequence[TokenizedExample]]) -> Iterator[FeatureBlock]:
        """Yield what `compute` returns for each of the batches, with the device busy all the time.

        A batch is made while the one before it is computed, and results are waited for when the next batch has begun.
        """
        return self.compute_all_packed([batch] for batch in batches)

    def compute_all_packed(self, batches: Iterable[Stacks]) -> Iterator[FeatureBlock]:
        """Yield what `compute_packed` returns for each of the batches, in the way of `compute_all`."""
        begun: Callable[[], FeatureBlock] | None = None
        for sent in one_ahead(self._send, batches):
            before, begun = begun, self._begin(*sent)
            del sent  # else three batches would be there while the next but one is made
            if before is not None:
                yield before()
                del before
        if begun is not None:
            yield begun()

    def projected(self, examples: Sequence[TokenizedExample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each example's mean loss [B], projected direction [B, D] and squared gradient norm [B], float64.

        Each must have a trained token. The projection is not made a unit yet; with the direction "sgd" it is linear in
        the gradient.
        """
        loss_B, feature_BD, square_B = self._run(make_batch(examples, self.device))
        return loss_B.cpu().numpy(), feature_BD.cpu().numpy(), square_B.cpu().numpy()

    def _send(self, stacks: Stacks) -> tuple[list[TokenizedExample], dict[int, str], SentBatch | None]:
        """Return the usable ones of the examples as a batch on its way, and why the others are not."""
        failures = {e.row: "no trained token" for stack in stacks for e in stack if not e.loss_tokens}
        trained = [kept for stack in stacks if (kept := [e for e in stack if e.loss_tokens])]
        examples = [e for stack in trained for e in stack]
        if len(trained) > 1:
            return examples, failures, self._sender.send_packed(trained)
        return examples, failures, self._sender.send(examples) if examples else None

    def _begin(
        self, examples: Sequence[TokenizedExample], failures: Mapping[int, str], batch: SentBatch | None
    ) -> Callable[[], FeatureBlock]:
        """Compute a batch and send its results back; on a GPU, neither is waited for but by what is returned."""
        if batch is None:
            none = np.zeros((0, self.dimension)), *[np.zeros(0)] * 3
            return partial(_block, examples, failures, lambda: none)
        loss_B, feature_BD, square_B = self._run(batch.arrive())
        norm_B = torch.linalg.vector_norm(feature_BD, dim=1)
        unit_BD = feature_BD.div_(norm_B[:, None]).half()
        results = Results(unit_BD, norm_B, square_B.sqrt(), loss_B)
        return partial(_block, examples, failures, results.wait)

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean losses [B], projected directions [B, D] and squared gradient norms [B], float64."""
        sums = _Sums(self, len(batch.loss_tokens_B))
        with _repeatable(self.device):
            if self._factors is None:
                loss_B = self._gradients.run(batch, sums.consume)
            else:
                loss_B = self._gradients.run(batch, sums.consume, sums.consume_factors)
            return loss_B.to(self.device), *sums.totals()

    def project_factors(self, weight: TrackedWeight, grad_BSo: Tensor, x_BSi: Tensor, out_BD: Tensor) -> None:
        """Add the projection of one weight's gradient sum_s grad_s x_s', which is not formed, to `out_BD`."""
        assert self._factors is not None
        self._factors.add_factors(out_BD, weight.offset, grad_BSo, x_BSi)


def _make_step(
    asked: Literal["auto"] | StepName,
    weights: Sequence[TrackedWeight],
    direction: Direction,
    projector: Projector,
    device: torch.device,
) -> tuple[StepName, FusedStep | TorchStep]:
    if asked == "fused" or (asked == "auto" and device.type == "cuda"):
        made = fused_step(weights, direction, projector)
        if isinstance(made, FusedStep):
            return "fused", made
        if asked == "fused":
            raise ConfigError(f"features.options.step: 'fused' cannot be had: {made}; take auto, or torch")
        log.warning("norms, directions and projections take PyTorch's own operations, one after the other: %s", made)
    return "torch", TorchStep(direction, projector)


class _Sums:
    """What one batch adds up, weight by weight: projected rows and squared norms."""

    def __init__(self, featurizer: GradientFeaturizer, B: int) -> None:
        self._featurizer, self._B = featurizer, B
        # A model spread over several GPUs runs its backward in one thread a GPU. Each has sums of its own, which are
        # added up in the order of the GPUs, so that which thread is faster does not show in the result.
        self._by_device: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def consume(self, weight: TrackedWeight, block_Bp: Tensor) -> None:
        with self._lock:
            out_BD, square_Bt = self._of(block_Bp.device)
            self._featurizer.inner_step.add(out_BD, square_Bt, weight, block_Bp)

    def consume_factors(self, weight: TrackedWeight, rows: slice, grad_BSo: Tensor, x_BSi: Tensor) -> None:
        with self._lock:
            out_BD, square_Bt = self._of(grad_BSo.device)
            square_Bt[rows, 0] += squared_norm(grad_BSo, x_BSi)
            self._featurizer.project_factors(weight, grad_BSo, x_BSi, out_BD[rows])

    def _of(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._by_device:
            owner = self._featurizer
            self._by_device[device] = (
                torch.zeros(self._B, owner.dimension, dtype=owner._dtype, device=owner.device),
                torch.zeros(self._B, owner.inner_step.parts, dtype=torch.float64, device=device),
            )
        return self._by_device[device]

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return features [B, D] and squared gradient norms [B], both float64 and on the featurizer's device."""
        ordered = [self._by_device[device] for device in sorted(self._by_device, key=str)]
        (feature_BD, square_B), *others = ((out_BD.double(), square_Bt.sum(1)) for out_BD, square_Bt in ordered)
        square_B = square_B.to(feature_BD.device)
        for other_BD, other_B in others:
            feature_BD, square_B = feature_BD + other_BD, square_B + other_B.to(feature_BD.device)
        return feature_BD, square_B


def _block(
    examples: Sequence[TokenizedExample], failures: Mapping[int, str], wait: Callable[[], Sequence[np.ndarray]]
) -> FeatureBlock:
    """Return the rows of a batch when `wait` has their unit rows, norms, gradient norms and losses."""
    unit_BD, norm_B, grad_norm_B, loss_B = wait()
    reasons = [_failure(*numbers) for numbers in zip(loss_B, grad_norm_B, norm_B, strict=True)]
    failed = {example.row: why for example, why in zip(examples, reasons, strict=True) if why}
    good = [b for b, why in enumerate(reasons) if not why]
    return feature_block(
        [examples[b] for b in good],
        {**failures, **failed},
        unit_BD=unit_BD[good],
        norm=norm_B[good],
        grad_norm=grad_norm_B[good],
        loss=loss_B[good],
    )


def squared_norm(grad_BSo: Tensor, x_BSi: Tensor) -> Tensor:
    """Return |sum_s grad_s x_s'|^2 of every row, [B] float64.

    It is the sum over tokens s, t of (grad_s . grad_t)(x_s . x_t), or that of the squares of the gradient's own
    entries: whichever has fewer operations.
    """
    S, o, i = grad_BSo.shape[1], grad_BSo.shape[2], x_BSi.shape[2]
    if o * i <= S * (o + i):
        return torch.bmm(grad_BSo.transpose(1, 2), x_BSi).double().square_().sum((1, 2))
    between_grads, between_inputs = (torch.bmm(t, t.transpose(1, 2)).double() for t in (grad_BSo, x_BSi))
    return (between_grads * between_inputs).sum((1, 2)).clamp_(min=0)  # rounding may leave a zero below zero


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Let CUDA choose only kernels that give the same bits every time."""
    if device.type != "cuda":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # costs time, changes no result
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filling


def _failure(loss: float, grad_norm: float, norm: float) -> str:
    if not np.isfinite(loss):
        return "non-finite loss"
    if not np.isfinite(grad_norm):
        return "non-finite gradient"
    if not np.isfinite(norm):
        return "non-finite feature"
    return "" if norm > 0 else "zero gradient"
