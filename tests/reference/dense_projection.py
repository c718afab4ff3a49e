"""Projection matrices entry by entry, with Python's own unbounded integers."""

from __future__ import annotations

import itertools

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
    """Return R [P, D]: coordinate i of block b has its k-th sign in column (i + offset_k(b)) mod D."""
    matrix = np.zeros((parameters, dimension))
    for i in range(parameters):
        for k, offset in enumerate(different_columns(seed, i // dimension, dimension, nonzeros)):
            matrix[i, (i + offset) % dimension] = sign(seed, i, k)
    return matrix / np.sqrt(nonzeros)


def different_columns(seed: int, block: int, dimension: int, nonzeros: int) -> list[int]:
    chosen: list[int] = []
    for k in range(nonzeros):
        left = [column for column in range(dimension) if column not in chosen]
        chosen.append(left[(word(seed, block, nonzeros + k) >> 32) * len(left) >> 32])
    return chosen


def sign(seed: int, coordinate: int, row: int) -> float:
    return 1.0 if word(seed, coordinate // 64, row) >> (coordinate % 64) & 1 else -1.0


def dense_hadamard(parameters: int, dimension: int, seed: int, block: int) -> np.ndarray:
    """Return R [P, D]: signs, the Hadamard matrix of every block, signs, rotation on the ring of columns."""
    width = dimension // block
    chunk = block * width
    matrix = np.zeros((parameters, dimension))
    for i in range(parameters):
        m, within = divmod(i, chunk)
        k, r = divmod(within, width)  # coordinate k of block r
        offset = (word(seed, m, 2) >> 32) * dimension >> 32
        for j in range(block):  # Sylvester's matrix has (-1)^(number of ones in k & j) at (k, j)
            place = j * width + r
            entry = (-1) ** (k & j).bit_count() * sign(seed, i, 0) * sign(seed, m * chunk + place, 1)
            matrix[i, (place + offset) % dimension] = entry / np.sqrt(block)
    return matrix


def dense_variance(x: np.ndarray, y: np.ndarray, dimension: int) -> float:
    """Return Var[xR . yR] for independent signs: (S - Q) / D."""
    return (spread(x, y) - 2 * float((x**2 * y**2).sum())) / dimension


def sparse_jl_variance(x: np.ndarray, y: np.ndarray, dimension: int, nonzeros: int) -> float:
    """Return Var[xR . yR], pair by pair: two coordinates meet in s^2 / D columns on average, in one block in fewer."""
    total = 0.0
    for i in range(len(x)):
        for j in range(i):
            same = i // dimension == j // dimension
            meetings = nonzeros * (nonzeros - 1) / (dimension - 1) if same else nonzeros**2 / dimension
            total += meetings / nonzeros**2 * (x[i] * y[j] + x[j] * y[i]) ** 2
    return total


def hadamard_variance(x: np.ndarray, y: np.ndarray, dimension: int, block: int) -> float:
    """Return Var[xR . yR], pair by pair: coordinates of one chunk are orthogonal."""
    chunk = dimension // block * block
    pairs = ((i, j) for i in range(len(x)) for j in range(i) if i // chunk != j // chunk)
    return sum((x[i] * y[j] + x[j] * y[i]) ** 2 for i, j in pairs) / dimension


def spread(x: np.ndarray, y: np.ndarray) -> float:
    """Return S = |x|^2 |y|^2 + (x . y)^2."""
    return float((x @ x) * (y @ y) + (x @ y) ** 2)


def dense_factored(shapes: list[tuple[int, int, int]], dimension: int, seed: int, columns: int) -> np.ndarray:
    """Return R [P, D] for weights (offset, out, in): Kronecker products of two maps, one after the other on the ring."""
    matrix, column = np.zeros((sum(out * inside for _, out, inside in shapes), dimension)), 0
    for offset, out, inside in shapes:
        product = np.kron(side(seed, offset, out, columns, 1), side(seed, offset, inside, columns, 0))
        for k in range(product.shape[1]):
            matrix[offset : offset + out * inside, (column + k) % dimension] += product[:, k]
        column += product.shape[1]
    return matrix


def side(seed: int, offset: int, width: int, columns: int, which: int) -> np.ndarray:
    words = -(-columns // 64)

    def entry(n: int, k: int) -> float:
        return 1.0 if word(seed, offset + n, which * words + k // 64) >> (k % 64) & 1 else -1.0

    if width <= columns:
        return np.diag([entry(n, 0) for n in range(width)])
    return np.array([[entry(n, k) for k in range(columns)] for n in range(width)]) / np.sqrt(columns)


def kronecker_variance(x: np.ndarray, y: np.ndarray, columns: int) -> float:
    """Return the variance of <R_out' X R_in, R_out' Y R_in> for one weight, sums over pairs written out."""
    (out, inside), total = x.shape, 0.0
    a, b = (0.0 if width <= columns else 1 / columns for width in x.shape)
    m, n = x @ y.T, x.T @ y
    total += a * sum((m[o, u] + m[u, o]) ** 2 for o in range(out) for u in range(o))
    total += b * sum((n[i, j] + n[j, i]) ** 2 for i in range(inside) for j in range(i))
    for o, u, i, j in itertools.product(range(out), range(out), range(inside), range(inside)):
        if u < o and j < i:
            total += a * b * (x[o, i] * y[u, j] + x[u, i] * y[o, j] + x[o, j] * y[u, i] + x[u, j] * y[o, i]) ** 2
    return total


def factored_variance(x: np.ndarray, y: np.ndarray, dimension: int, columns: int, shapes=None) -> float:
    """Return Var[xR . yR]: of every weight alone, and of pairs of coordinates of two weights that share columns."""
    shapes = shapes or [(0, 1, len(x))]
    square, total = dense_factored(shapes, dimension, 0, columns) ** 2, 0.0  # the squares are the same for all seeds
    for w, (offset, out, inside) in enumerate(shapes):
        own = slice(offset, offset + out * inside)
        total += kronecker_variance(x[own].reshape(out, inside), y[own].reshape(out, inside), columns)
        for other_offset, other_out, other_inside in shapes[:w]:
            other = slice(other_offset, other_offset + other_out * other_inside)
            meet = square[own] @ square[other].T
            total += float((meet * (np.outer(x[own], y[other]) + np.outer(y[own], x[other])) ** 2).sum())
    return total
