"""What is done with the gradients of one weight: their squares, their direction and its projection are added up.

Shape suffixes: B batch, D feature, p coordinates of one weight, t parts of a sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from influray.features.preconditioners import Direction
    from influray.model.tracked_weights import TrackedWeight
    from influray.protocols import Projector


class TorchStep:
    """The step in PyTorch's own operations: any direction and projector, on any device.

    Weights are added one after the other to the rows of a batch. The sums of squares come in `parts` parts.
    """

    parts = 1

    def __init__(self, direction: Direction, projector: Projector) -> None:
        self.direction, self.projector = direction, projector

    def add(self, out_BD: Tensor, square_Bt: Tensor, weight: TrackedWeight, block_Bp: Tensor) -> None:
        """Add the projected direction to `out_BD` and the squares to `square_Bt` float64, both in place."""
        self.add_square(square_Bt, block_Bp)
        self.projector.add_slice(out_BD, self.direction(weight, block_Bp), weight.offset)

    def add_square(self, square_Bt: Tensor, block_Bp: Tensor) -> None:
        # A copy even of float64: the block is projected after this.
        square_Bt[:, 0] += block_Bp.to(torch.float64, copy=True).square_().sum(1)
