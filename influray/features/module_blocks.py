"""A part of the feature's D numbers for each LoRA module: what methods need that treat a model module by module.

Shape suffixes: B batch, S tokens, D feature, L modules, p coordinates of one weight, o outputs, i inputs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor

from influray.model.tracked_weights import TrackedWeight
from influray.protocols import ConfigError, FactorProjector, Projector


class ModuleBlocks(Projector):
    """A projector whose D numbers are L equal parts, the l-th of them made from the gradients of module l alone.

    A module is a LoRA pair, A and B. `bounds` are where the parts begin, and D. `make(d)` returns a projector of all
    coordinates to d numbers: as entries belong to coordinates, one does for all modules, and the parts are independent.
    """

    def __init__(
        self, modules: Sequence[Sequence[TrackedWeight]], dimension: int, make: Callable[[int], Projector]
    ) -> None:
        self.dimension = dimension
        self._width = dimension // len(modules)
        self.bounds = tuple(range(0, dimension + 1, self._width))
        self._offsets = [module[0].offset for module in modules]
        self._projector = make(self._width)

    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of a slice that lies within one module to that module's part of `out_BD`, in place."""
        start = self.bounds[bisect_right(self._offsets, offset) - 1]
        self._projector.add_slice(out_BD[:, start : start + self._width], block_Bp, offset)


class FactorBlocks(FactorProjector):
    """The same for a projector of whole layers: an equal share of a module's part for each weight of it.

    No two weights share a number, so that the result R_out' G R_in of each can be read back as a matrix. `factors` says
    where: (first number, rows, columns) of every weight's, row-major. Numbers that a result leaves over are zero.
    `make(d)` returns a projector for a single weight to d numbers, told by `set_layout` which.
    """

    def __init__(
        self, modules: Sequence[Sequence[TrackedWeight]], dimension: int, make: Callable[[int], FactorProjector]
    ) -> None:
        self.dimension = dimension
        width = dimension // len(modules)
        self.bounds = tuple(range(0, dimension + 1, width))
        self._parts: dict[int, tuple[slice, FactorProjector]] = {}
        self.factors: tuple[tuple[int, int, int], ...] = ()
        for start, module in zip(self.bounds, modules, strict=False):
            share = width // len(module)
            for i, weight in enumerate(module):
                outputs, inputs = weight.module.weight.shape
                projector, first = make(share), start + i * share
                projector.set_layout([(weight.offset, outputs, inputs)])
                self._parts[weight.offset] = slice(first, first + share), projector
                self.factors += ((first, *projector.result_shape(weight.offset)),)

    def set_layout(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """It is that of the weights it was made of."""

    def result_shape(self, offset: int) -> tuple[int, int]:
        """Return (rows, columns) of the result of the weight at `offset`."""
        return self._parts[offset][1].result_shape(offset)

    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of a slice that lies within one weight to that weight's share of `out_BD`, in place."""
        here, projector = self._parts[max(first for first in self._parts if first <= offset)]
        projector.add_slice(out_BD[:, here], block_Bp, offset)

    def add_factors(self, out_BD: Tensor, offset: int, grad_BSo: Tensor, x_BSi: Tensor) -> None:
        """Add the projection of sum_s grad_s x_s', the gradient of the weight at `offset`, to `out_BD`, in place."""
        here, projector = self._parts[offset]
        projector.add_factors(out_BD[:, here], offset, grad_BSo, x_BSi)


def module_blocks(
    weights: Sequence[TrackedWeight], dimension: int, make: Callable[[int], Projector], key: str
) -> ModuleBlocks | FactorBlocks:
    """Return the projector of `weights` whose D numbers are split over their modules: LoRA pairs, or layers.

    Raises:
        ConfigError: D is no multiple of their number, or leaves a weight nothing. `key` names it.
    """
    owners = [weight.name.rpartition(".lora_")[0] or weight.name for weight in weights]
    first = [i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]
    modules = [weights[start:stop] for start, stop in pairwise([*first, len(weights)])]
    count = len(modules)
    if dimension % count:
        near = [n for n in (dimension // count * count, -(-dimension // count) * count) if n]
        raise ConfigError(
            f"{key}: {dimension} numbers cannot be shared evenly by {count} modules, as features.blocks: module "
            f"asks; take {' or '.join(map(str, near))}"
        )
    most = max(len(module) for module in modules)
    if not isinstance(make(dimension), FactorProjector):
        return ModuleBlocks(modules, dimension, make)
    if dimension // count < most:
        raise ConfigError(f"{key}: {dimension} numbers for {count} modules leave a weight of them none")
    return FactorBlocks(modules, dimension, cast(Callable[[int], FactorProjector], make))
