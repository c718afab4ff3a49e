"""Projection matrices entry by entry, with Python's own unbounded integers."""

from __future__ import annotations

import numpy as np

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15
SECOND = 0xD1B54A32D192ED03


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def word(seed: int, coordinate: int, column: int) -> int:
    row = mix((mix((seed + GOLDEN) % WORD) + (coordinate + 1) * GOLDEN) % WORD)
    return mix((row + (column + 1) * SECOND) % WORD)


def dense_rademacher(parameters: int, dimension: int, seed: int) -> np.ndarray:
    """Return R [P, D]: the sign of column j is bit j % 64 of word j // 64."""
    matrix = np.empty((parameters, dimension))
    for i in range(parameters):
        for j in range(dimension):
            matrix[i, j] = 1.0 if word(seed, i, j // 64) >> (j % 64) & 1 else -1.0
    return matrix * dimension**-0.5


def dense_sparse_jl(parameters: int, dimension: int, seed: int, nonzeros: int) -> np.ndarray:
    """Return R [P, D]: of each word the high half places the non-zero in its block, the lowest bit is the sign."""
    matrix = np.zeros((parameters, dimension))
    width = dimension // nonzeros
    for i in range(parameters):
        for k in range(nonzeros):
            w = word(seed, i, k)
            matrix[i, k * width + ((w >> 32) * width >> 32)] = 1.0 if w & 1 else -1.0
    return matrix / np.sqrt(nonzeros)
