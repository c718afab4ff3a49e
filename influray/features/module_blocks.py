"""A part of the feature's D numbers for each LoRA module: what methods need that treat a model module by module.

Shape suffixes: B batch, D feature, L modules, p coordinates of one weight.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch import Tensor

from influray.model.tracked_weights import TrackedWeight
from influray.protocols import ConfigError, FactorProjector, Projector


class ModuleBlocks(Projector):
    """A projector whose D numbers are L equal parts, the l-th of them made from the gradients of module l alone.

    A module is a LoRA pair, A and B. `bounds` are where the parts begin, and D. `make(d)` returns a projector of all
    coordinates to d numbers: as entries belong to coordinates, one does for all modules, and the parts are independent.

    Raises:
        ConfigError: D is no multiple of L, or the projector takes whole layers.
    """

    def __init__(
        self, weights: Sequence[TrackedWeight], dimension: int, make: Callable[[int], Projector], key: str
    ) -> None:
        owners = [weight.name.rpartition(".lora_")[0] for weight in weights]
        first = [i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]
        modules = len(first)
        if dimension % modules:
            near = [n for n in (dimension // modules * modules, -(-dimension // modules) * modules) if n]
            raise ConfigError(
                f"{key}: {dimension} numbers cannot be shared evenly by {modules} LoRA modules, as features.blocks: "
                f"module asks; take {' or '.join(map(str, near))}"
            )
        self.dimension = dimension
        self._width = dimension // modules
        self.bounds = tuple(range(0, dimension + 1, self._width))
        self._offsets = [weights[i].offset for i in first]
        self._projector = make(self._width)
        if isinstance(self._projector, FactorProjector):
            raise ConfigError(
                "features.blocks: module needs a projector of single coordinates, and "
                f"{type(self._projector).__name__} takes whole layers; take another features.projector.name"
            )

    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of a slice that lies within one module to that module's part of `out_BD`, in place."""
        start = self.bounds[bisect_right(self._offsets, offset) - 1]
        self._projector.add_slice(out_BD[:, start : start + self._width], block_Bp, offset)
