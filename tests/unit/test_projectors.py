"""Projectors against matrices built entry by entry, and how they keep memory bounded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from influray.features.projectors import IdentityProjector, RademacherProjector, SparseJLProjector, mix64
from influray.protocols import ConfigError
from tests.reference.dense_projection import dense_rademacher, dense_sparse_jl, mix


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


@pytest.mark.parametrize(("dimension", "nonzeros"), [(24, 1), (24, 8), (30, 3), (6, 6)])
def test_sparse_jl_is_the_dense_matrix_of_its_hash(dimension, nonzeros):
    expected = dense_sparse_jl(130, dimension, 3, nonzeros)
    x = rows(3, 130)
    found = project(SparseJLProjector(dimension, 130, 3, nonzeros=nonzeros), x)
    np.testing.assert_allclose(found.numpy(), x.numpy() @ expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [RademacherProjector, SparseJLProjector])
def test_slices_cut_on_the_grid_change_no_bit(kind, monkeypatch):
    monkeypatch.setattr(kind, "CHUNK", 32)
    x = rows(5, 150, torch.float32)
    whole = project(kind(16, 150, 0), x)
    assert torch.equal(project(kind(16, 150, 0), x, cuts=(32, 96, 128)), whole)
    monkeypatch.setattr(kind, "CHUNK", 1000)
    assert torch.allclose(project(kind(16, 150, 0), x), whole, atol=1e-5)


@pytest.mark.parametrize("kind", [RademacherProjector, SparseJLProjector])
@pytest.mark.parametrize("limit", [0, 5000, 2**29])
def test_the_cache_keeps_to_its_bound_and_changes_no_bit(kind, limit, monkeypatch):
    monkeypatch.setattr(kind, "CHUNK", 32)
    x = rows(5, 150, torch.float32)
    expected = project(kind(16, 150, 0), x)
    projector = kind(16, 150, 0, cache_bytes=limit)
    first, again = project(projector, x), project(projector, x)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert projector._chunks.bytes <= limit
    assert (projector._chunks.bytes > 0) == (limit > 0)


def test_signs_are_balanced_over_columns_coordinates_and_pairs():
    matrix = RademacherProjector(256, 1024, 7).matrix(0, 1024).sign()
    bound = 5.5  # standard errors; 1024 x 1024 pairs at most
    assert matrix.mean(0).abs().max() < bound / 1024**0.5
    assert matrix.mean(1).abs().max() < bound / 256**0.5
    between = matrix @ matrix.T / 256
    assert between.fill_diagonal_(0).abs().max() < (bound + 1) / 256**0.5
    columns = matrix.T @ matrix / 1024
    assert columns.fill_diagonal_(0).abs().max() < bound / 1024**0.5


def test_buckets_are_filled_evenly():
    column, sign = SparseJLProjector(64, 64000, 1, nonzeros=2).entries(0, 64000)
    assert torch.equal(column // 32, torch.tensor([[0, 1]]).expand(64000, 2))
    counts = torch.bincount(column.reshape(-1), minlength=64).double()
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()
    assert sign.mean().abs() < 5 / 128000**0.5


def test_sparse_jl_needs_equal_blocks():
    with pytest.raises(ConfigError, match=r"features\.projector\.options\.nonzeros: 8 does not divide"):
        SparseJLProjector(20, 100, 0)


def test_identity_needs_as_many_columns_as_coordinates():
    with pytest.raises(ConfigError, match=r"features\.projector\.dimension: 10, .* all 12 coordinates"):
        IdentityProjector(10, 12, 0)
    x = rows(2, 12)
    assert torch.equal(project(IdentityProjector(12, 12, 0), x, cuts=(5,)), x)
