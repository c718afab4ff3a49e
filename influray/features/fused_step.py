"""The inner step in one kernel, where Triton can run it.

In PyTorch's operations the step moves about 90 bytes for every coordinate of a row, and starts two kernels for every
D of them; the kernel reads the gradient once.

Shape suffixes: B batch, D feature, p coordinates of one weight, t parts of a sum, n blocks, s non-zeros.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from influray.features.inner_step import TorchStep
from influray.features.preconditioners import AdamDirections, Direction, plain_direction, sign_direction
from influray.features.projectors.hashing import hash_key
from influray.features.projectors.sparse_jl import SparseJLProjector
from influray.protocols import Projector

if TYPE_CHECKING:
    from influray.model.tracked_weights import TrackedWeight

PROBE_ERROR = 1e-5  # of the largest number of the result; rounding gives 1e-7


class FusedStep:
    """Adam's, the plain or the sign direction and a sparse_jl projection, for float32 gradients on one GPU.

    Signs and columns are those of the projector, bit for bit; numbers differ from TorchStep by rounding. A row has the
    same bits in every batch and every time. Neither a table of signs nor a direction [B, p] is kept.
    """

    def __init__(self, direction: Direction, projector: Projector, device: torch.device) -> None:
        assert isinstance(projector, SparseJLProjector), "see fused_problem"
        kernel: Any = importlib.import_module("influray.features.fused_kernel")
        self._kernel = kernel
        self._adam = direction if isinstance(direction, AdamDirections) else None
        self._kind = kernel.ADAM if self._adam else kernel.SGD if direction is plain_direction else kernel.SIGN
        self._nonzeros, self.dimension = projector.nonzeros, projector.dimension
        self._key_1 = hash_key(projector.seed, torch.device("cpu")).reshape(1).to(device)
        self._shift_ns = torch.tensor(projector.offset_ns, dtype=torch.int32, device=device)
        self.parts = -(-projector.dimension // self._kernel.COLUMNS)

    @torch.no_grad()
    def add(self, out_BD: Tensor, square_Bt: Tensor, weight: TrackedWeight, block_Bp: Tensor) -> None:
        """Add the projected direction to `out_BD` float32 and the squares to `square_Bt` float64, both in place."""
        B, p = block_Bp.shape
        if not B or not p:
            return
        assert block_Bp.dtype == out_BD.dtype == torch.float32
        assert square_Bt.dtype == torch.float64
        assert block_Bp.is_contiguous()
        assert out_BD.is_contiguous()
        assert square_Bt.is_contiguous()
        adam = None if self._adam is None else self._adam.of(weight)
        first_p = adam.first_p if adam else None
        kernel, D = self._kernel, self.dimension
        with torch.cuda.device_of(block_Bp):
            kernel.inner_step[(-(-B // kernel.ROWS), self.parts)](
                block_Bp,
                block_Bp if first_p is None else first_p,
                adam.second_p if adam else block_Bp,
                self._key_1,
                self._shift_ns,
                out_BD,
                square_Bt,
                B,
                p,
                weight.offset,
                weight.offset // D,
                -(-(weight.offset + p) // D),
                adam.gain if adam else 1.0,
                adam.outside if adam else 0.0,
                self._nonzeros**-0.5,
                D=D,
                DIRECTION=self._kind,
                MOMENTUM=first_p is not None,
                OUTSIDE=adam is not None and adam.outside > 0,
                NONZEROS=self._nonzeros,
                ROWS=kernel.ROWS,
                COLUMNS=kernel.COLUMNS,
                num_warps=kernel.WARPS,
                enable_fp_fusion=False,  # as PyTorch rounds: the product, then the sum
            )


def fused_step(weights: Sequence[TrackedWeight], direction: Direction, projector: Projector) -> FusedStep | str:
    """Return the step for these weights, or why there is none.

    Before it is used it is tried on one weight: compiling it needs a C compiler besides triton, and what it gives must
    be what TorchStep gives.
    """
    problem = fused_problem(weights, direction, projector)
    if problem:
        return problem
    weight = min(weights, key=lambda one: one.size)
    step = FusedStep(direction, projector, weight.module.weight.device)
    try:
        error = _error(step, TorchStep(direction, projector), weight)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError, subprocess.SubprocessError) as caught:
        return f"triton cannot run its kernel here ({type(caught).__name__}: {caught})"
    return step if error <= PROBE_ERROR else f"triton's kernel is off by {error:.3g} here"


def fused_problem(weights: Sequence[TrackedWeight], direction: Direction, projector: Projector) -> str:
    """Return why FusedStep cannot take these, or "" where it can."""
    devices = {weight.module.weight.device for weight in weights}
    dtypes = {weight.module.weight.dtype for weight in weights}
    if type(projector) is not SparseJLProjector:
        return f"the projection is not sparse_jl over all modules but {type(projector).__name__}"
    if not (isinstance(direction, AdamDirections) or direction is plain_direction or direction is sign_direction):
        return "the direction is not one of its own"
    if torch.float64 in dtypes:
        return "gradients are float64"
    if len(devices) > 1:
        return "the weights lie on several devices"
    if {device.type for device in devices} != {"cuda"} and os.environ.get("TRITON_INTERPRET") != "1":
        return "the weights are not on a GPU"
    try:
        importlib.import_module("triton")
    except ImportError:
        return "triton cannot be imported; PyTorch's builds for CUDA bring it along"
    return ""


def _error(step: FusedStep, reference: TorchStep, weight: TrackedWeight) -> float:
    """Return how far the step is from the reference for made-up gradients, relative to the largest number."""
    device, D, B = weight.module.weight.device, step.dimension, 2
    grad_Bp = torch.linspace(-1e-3, 1e-3, B * weight.size, device=device).view(B, weight.size)

    def result(one: FusedStep | TorchStep) -> tuple[Tensor, Tensor]:
        out_BD = torch.zeros(B, D, device=device)
        square_Bt = torch.zeros(B, one.parts, dtype=torch.float64, device=device)
        one.add(out_BD, square_Bt, weight, grad_Bp)
        return out_BD, square_Bt.sum(1)

    pairs = zip(result(step), result(reference), strict=True)
    errors = torch.stack([(found - expected).abs().max() / expected.abs().max() for found, expected in pairs])
    return float(errors.nan_to_num(nan=torch.inf).max())
