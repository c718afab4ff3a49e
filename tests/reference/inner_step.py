"""The inner step one number at a time, in Python's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.reference.dense_projection import different_columns, sign


def loop_step(
    gradients: Sequence[Sequence[float]],
    direction: Callable[[float, int], float],  # (gradient, its place in the weight)
    offset: int,
    dimension: int,
    seed: int,
    nonzeros: int,
) -> tuple[list[list[float]], list[float]]:
    """Return the sparse_jl projection of each row's direction, [B][D], and its squared norm, [B].

    The rows are the gradients of a weight whose coordinates begin at `offset`.
    """
    rows, squares = [], []
    for gradient in gradients:
        row, square = [0.0] * dimension, 0.0
        for place, g in enumerate(gradient):
            square += g * g
            i = offset + place
            for k, shift in enumerate(different_columns(seed, i // dimension, dimension, nonzeros)):
                row[(i + shift) % dimension] += sign(seed, i, k) * direction(g, place) / nonzeros**0.5
        rows.append(row)
        squares.append(square)
    return rows, squares
