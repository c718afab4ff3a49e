"""Projectors against matrices built entry by entry, and how they keep memory bounded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from influray.features.projectors.factored import FactoredProjector
from influray.features.projectors.hadamard import HadamardProjector, walsh_hadamard
from influray.features.projectors.hashing import SignBits, coordinate_signs, mix64
from influray.features.projectors.identity import IdentityProjector
from influray.features.projectors.rademacher import RademacherProjector
from influray.features.projectors.sparse_jl import SparseJLProjector
from influray.protocols import ConfigError
from tests.reference.dense_projection import (
    dense_factored,
    dense_hadamard,
    dense_rademacher,
    dense_sparse_jl,
    factored_variance,
    mix,
    sign,
)


def project(projector, x_BP, cuts=()):
    out = torch.zeros(len(x_BP), projector.dimension, dtype=x_BP.dtype)
    edges = [0, *cuts, x_BP.shape[1]]
    for start, stop in itertools.pairwise(edges):
        projector.add_slice(out, x_BP[:, start:stop], start)
    return out


def rows(n, parameters, dtype=torch.float64):
    return torch.randn(n, parameters, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_the_hash_is_that_of_unbounded_integers():
    values = [0, 1, 2**31, 2**63 - 1, -1, -(2**63), 123456789123456789]
    expected = [mix(v % 2**64) for v in values]
    assert [v % 2**64 for v in mix64(torch.tensor(values)).tolist()] == expected


@pytest.mark.parametrize("dimension", [7, 64, 100])
@pytest.mark.parametrize("seed", [0, 3, 2**40 + 1, -2])
def test_rademacher_is_the_dense_matrix_of_its_hash(dimension, seed):
    expected = dense_rademacher(130, dimension, seed)
    projector = RademacherProjector(dimension, 130, seed)
    assert np.array_equal(projector.matrix(0, 130).numpy(), expected.astype(np.float32))
    assert torch.equal(projector.matrix(50, 60), projector.matrix(0, 130)[50:60])
    x = rows(3, 130)
    np.testing.assert_allclose(project(projector, x).numpy(), x.numpy() @ expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 2**40 + 1, -2])
@pytest.mark.parametrize(("dimension", "nonzeros"), [(24, 1), (24, 8), (31, 3), (6, 6), (200, 2)])
def test_sparse_jl_is_the_dense_matrix_of_its_hash(dimension, nonzeros, seed):
    expected = dense_sparse_jl(130, dimension, seed, nonzeros)
    x = rows(3, 130)
    found = project(SparseJLProjector(dimension, 130, seed, nonzeros=nonzeros), x, cuts=(11, 50))
    np.testing.assert_allclose(found.numpy(), x.numpy() @ expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 2**40 + 1, -2])
@pytest.mark.parametrize(("dimension", "block"), [(24, 1), (24, 8), (31, 4), (64, 64), (200, 16)])
def test_hadamard_is_the_dense_matrix_of_its_hash(dimension, block, seed):
    expected = dense_hadamard(130, dimension, seed, block)
    x = rows(3, 130)
    found = project(HadamardProjector(dimension, 130, seed, block=block), x, cuts=(11, 50))
    np.testing.assert_allclose(found.numpy(), x.numpy() @ expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 8])
def test_walsh_hadamard_multiplies_by_the_matrix_of_sylvester(order):
    matrix = torch.tensor([[(-1.0) ** (k & j).bit_count() for j in range(order)] for k in range(order)])
    x = torch.arange(2.0 * order * 3).view(2, order, 3)
    assert torch.equal(walsh_hadamard(x.clone()), torch.einsum("kj,bjw->bkw", matrix, x))


def test_signs_of_coordinates_are_those_of_the_hash_wherever_a_slice_begins():
    found = coordinate_signs(SignBits(1.0, torch.device("cpu")), 5, 50, 200, 2, torch.device("cpu"))
    assert found.tolist() == [[sign(5, i, k) for i in range(50, 200)] for k in range(2)]


SHAPES = [(0, 3, 10), (30, 9, 4), (66, 8, 5)]  # more than D = 19 columns together; 106 coordinates


def factored(seed, columns=4, dimension=19):
    projector = FactoredProjector(dimension, 106, seed, columns=columns)
    projector.set_layout(SHAPES)
    return projector


@pytest.mark.parametrize(("columns", "dimension"), [(4, 19), (1, 5), (9, 100), (70, 4900)])
@pytest.mark.parametrize("seed", [0, 2**40 + 1, -2])
def test_factored_is_the_dense_matrix_of_its_hash(columns, dimension, seed):
    expected = dense_factored(SHAPES, dimension, seed, columns)
    x = rows(3, 106)
    found = project(factored(seed, columns, dimension), x, cuts=(11, 50))
    np.testing.assert_allclose(found.numpy(), x.numpy() @ expected, rtol=1e-6, atol=1e-6)


def test_factors_are_projected_as_the_gradient_that_they_make():
    generator = torch.Generator().manual_seed(0)
    for offset, out, inside in SHAPES:
        grad_BSo = torch.randn(5, 7, out, generator=generator)
        x_BSi = torch.randn(5, 7, inside, generator=generator)
        block_Bp = torch.einsum("bso,bsi->boi", grad_BSo, x_BSi).flatten(1)
        expected, found, alone = torch.zeros(3, 5, 19)
        factored(0).add_slice(expected, block_Bp, offset)
        factored(0).add_factors(found, offset, grad_BSo, x_BSi)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for b in range(5):
            factored(0).add_factors(alone[b : b + 1], offset, grad_BSo[b : b + 1], x_BSi[b : b + 1])
        assert torch.equal(alone, found)


def test_factored_inner_products_of_several_weights_have_the_stated_mean_and_variance():
    n = 1000
    x, y = rows(2, 106)
    x[36:40] *= 3
    y = x + 0.5 * y
    found = []
    for seed in range(n):
        px, py = project(factored(seed), torch.stack([x, y]))
        found.append(px @ py)
    found = torch.stack(found)
    variance = factored_variance(x.numpy(), y.numpy(), 19, 4, SHAPES)
    assert abs(found.mean() - x @ y) < 5 * (variance / n) ** 0.5
    fourth = ((found - found.mean()) ** 4).mean()
    assert abs(found.var() - variance) < 5 * ((fourth - found.var() ** 2) / n) ** 0.5


STREAMED = [
    pytest.param(RademacherProjector, {}, 32, id="rademacher"),
    pytest.param(SparseJLProjector, {"nonzeros": 1}, 1, id="sparse_jl-1"),
    pytest.param(SparseJLProjector, {"nonzeros": 3}, 16, id="sparse_jl-3"),
    pytest.param(HadamardProjector, {"block": 4}, 16, id="hadamard"),
]


@pytest.mark.parametrize(("kind", "options", "step"), STREAMED)
def test_slices_cut_on_the_grid_change_no_bit(kind, options, step, monkeypatch):
    if hasattr(kind, "CHUNK"):
        monkeypatch.setattr(kind, "CHUNK", 32)
    x = rows(5, 150, torch.float32)
    whole = project(kind(16, 150, 0, **options), x)
    assert torch.equal(project(kind(16, 150, 0, **options), x, cuts=(step, 3 * step, 128)), whole)
    if hasattr(kind, "CHUNK"):
        monkeypatch.setattr(kind, "CHUNK", 1000)
        assert torch.allclose(project(kind(16, 150, 0, **options), x), whole, atol=1e-5)


@pytest.mark.parametrize(("kind", "options", "step"), STREAMED)
@pytest.mark.parametrize("limit", [0, 10000, 2**29])
def test_the_cache_keeps_to_its_bound_and_changes_no_bit(kind, options, step, limit, monkeypatch):
    del step
    if hasattr(kind, "CHUNK"):
        monkeypatch.setattr(kind, "CHUNK", 32)
    x = rows(5, 1500, torch.float32)
    expected = project(kind(16, 1500, 0, **options), x)
    projector = kind(16, 1500, 0, cache_bytes=limit, **options)
    first, again = project(projector, x), project(projector, x)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    cache = getattr(projector, "_chunks", None) or projector._signs
    assert cache.bytes <= limit
    assert (cache.bytes > 0) == (limit > 0)


@pytest.mark.parametrize("kind", [SparseJLProjector, HadamardProjector])
def test_a_gradient_of_at_most_D_coordinates_keeps_its_inner_products_exactly(kind):
    x = rows(3, 60)
    found = project(kind(64, 60, 0), x)
    torch.testing.assert_close(found @ found.T, x @ x.T, rtol=1e-6, atol=1e-6)


def test_signs_are_balanced_over_columns_coordinates_and_pairs():
    matrix = RademacherProjector(256, 1024, 7).matrix(0, 1024).sign()
    bound = 5.5  # standard errors; 1024 x 1024 pairs at most
    assert matrix.mean(0).abs().max() < bound / 1024**0.5
    assert matrix.mean(1).abs().max() < bound / 256**0.5
    between = matrix @ matrix.T / 256
    assert between.fill_diagonal_(0).abs().max() < (bound + 1) / 256**0.5
    columns = matrix.T @ matrix / 1024
    assert columns.fill_diagonal_(0).abs().max() < bound / 1024**0.5


def test_columns_of_a_block_are_different_and_equally_likely():
    D, s = 12, 3
    offset_ns = np.array(SparseJLProjector(D, D * 20000, 1, nonzeros=s).offset_ns)
    assert (np.diff(np.sort(offset_ns, axis=1), axis=1) > 0).all()
    pair = np.bincount(offset_ns[:, 0] * D + offset_ns[:, 2], minlength=D * D).reshape(D, D)
    expected = 20000 / (D * (D - 1))
    assert (np.diag(pair) == 0).all()
    assert (abs(pair[~np.eye(D, dtype=bool)] - expected) < 5 * expected**0.5).all()


def test_options_that_do_not_fit_the_dimension_are_refused():
    with pytest.raises(ConfigError, match=r"features\.projector\.options\.nonzeros: 8 .* = 7 columns"):
        SparseJLProjector(7, 100, 0, nonzeros=8)
    with pytest.raises(ConfigError, match=r"features\.projector\.options\.columns: found 5; .* = 24"):
        FactoredProjector(24, 100, 0, columns=5)
    for block in (12, 32):
        with pytest.raises(ConfigError, match=rf"features\.projector\.options\.block: found {block}; .* = 20"):
            HadamardProjector(20, 100, 0, block=block)


def test_identity_needs_as_many_columns_as_coordinates():
    with pytest.raises(ConfigError, match=r"features\.projector\.dimension: 10, .* all 12 coordinates"):
        IdentityProjector(10, 12, 0)
    x = rows(2, 12)
    assert torch.equal(project(IdentityProjector(12, 12, 0), x, cuts=(5,)), x)
