"""What influray relies on of a projector. D = P, so that the identity can be among them.

Shape suffixes: B rows, D feature, P coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from influray.protocols import Projector
from influray.testing.laws import law

MakesProjector = Callable[[int, int, int], Projector]
WIDTH = 96


def check_projector(make: MakesProjector) -> None:
    """Check the projectors that `make(dimension, parameters, seed)` returns.

    Raises:
        AssertionError: with the law that is broken.
    """
    for one in PROJECTOR_LAWS:
        one(make)


def _gradients(rows: int, parameters: int = WIDTH, double: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, parameters, generator=generator, dtype=torch.float64 if double else torch.float32)


def projected(projector: Projector, x_BP: Tensor, cuts: Sequence[int] = ()) -> Tensor:
    """Return the projection of whole rows, given in slices that begin at `cuts`, [B, D] of their dtype."""
    out_BD = x_BP.new_zeros(len(x_BP), projector.dimension)
    for start, stop in zip((0, *cuts), (*cuts, x_BP.shape[1]), strict=True):
        projector.add_slice(out_BD, x_BP[:, start:stop], start)
    return out_BD


def is_linear(make: MakesProjector) -> None:
    """The projection of a sum is the sum of the projections, and it is added to what is there."""
    x_P, y_P = _gradients(2, double=True)
    projector = make(WIDTH, WIDTH, 0)
    px_D, py_D, both_D = projected(projector, torch.stack([x_P, y_P, 2 * x_P - 3 * y_P]))
    law(torch.allclose(both_D, 2 * px_D - 3 * py_D, atol=1e-12) and bool(px_D.any()), "it is not linear")
    out_BD = torch.ones(3, WIDTH)
    projector.add_slice(out_BD, _gradients(3), 0)
    added = torch.allclose(out_BD, 1 + projected(projector, _gradients(3)), atol=1e-6)
    law(added, "the projection is not added to what is there")
    before = out_BD.clone()
    projector.add_slice(out_BD, torch.zeros(3, 0), 5)
    law(torch.equal(out_BD, before), "a slice without coordinates changes something")
    law(projected(projector, _gradients(0)).shape == (0, WIDTH), "no rows are not taken")


def slices_add_up(make: MakesProjector) -> None:
    """A row given in slices is projected as in one piece, to rounding."""
    x_BP = _gradients(4)
    pieces = projected(make(WIDTH, WIDTH, 0), x_BP, cuts=(1, 5, 50))
    law(torch.allclose(pieces, projected(make(WIDTH, WIDTH, 0), x_BP), atol=1e-5), "slices do not add up")


def rows_do_not_touch(make: MakesProjector) -> None:
    """A row has the same bits in every batch, also beside one that is not finite."""
    for parameters in (WIDTH, 1200):
        projector, x_BP = make(parameters, parameters, 0), _gradients(41, parameters)
        whole = projected(projector, x_BP)
        for size in (1, 7):
            parts = torch.cat([projected(projector, part) for part in x_BP.split(size)])
            law(torch.equal(parts, whole), f"a row has other bits in a batch of {size}")
        x_BP[2, 3], x_BP[2, 4] = float("nan"), float("inf")
        poisoned = projected(projector, x_BP)
        others = [b for b in range(len(x_BP)) if b != 2]
        law(torch.equal(poisoned[others], whole[others]), "a row that is not finite shows in the others")
        law(not bool(torch.isfinite(poisoned[2]).all()), "a row that is not finite becomes finite")


def a_seed_is_a_matrix(make: MakesProjector) -> None:
    """One seed gives one matrix."""
    one, other = (projected(make(WIDTH, WIDTH, 5), _gradients(3)) for _ in range(2))
    law(torch.equal(one, other), "one seed gave two matrices")


PROJECTOR_LAWS = (is_linear, slices_add_up, rows_do_not_touch, a_seed_is_a_matrix)
