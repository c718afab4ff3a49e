"""Laws that every projector of the registry keeps."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from influray.protocols import ConfigError, Projector
from influray.registry import PROJECTORS
from influray.registry import make as make_method
from tests.reference.dense_projection import dense_variance, factored_variance, hadamard_variance, sparse_jl_variance

P, D = 96, 96  # equal, so that the identity can be among them
NAMES = sorted(PROJECTORS)
RANDOM = sorted(set(NAMES) - {"identity"})


def make(name, seed=0, dimension=D, parameters=P, **options) -> Projector:
    return make_method("projectors", name, options, dimension, parameters, seed, "cpu")


def project(projector, x_BP, cuts=(), dtype=torch.float32):
    out = torch.zeros(len(x_BP), projector.dimension, dtype=dtype)
    edges = [0, *cuts, x_BP.shape[1]]
    for start, stop in itertools.pairwise(edges):
        projector.add_slice(out, x_BP[:, start:stop], start)
    return out


def rows(n, parameters=P, seed=1, dtype=torch.float32):
    return torch.randn(n, parameters, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_projector(name):
    assert isinstance(make(name), Projector)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_linear(name):
    x, y = rows(2, dtype=torch.float64)
    stacked = torch.stack([x, y, 2 * x - 3 * y])
    px, py, p = project(make(name), stacked, dtype=torch.float64)
    assert torch.allclose(p, 2 * px - 3 * py, atol=1e-12)
    assert px.norm() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parameters", [96, 20000])
def test_a_row_has_the_same_bits_in_every_batch(name, parameters):
    projector = make(name, parameters=parameters, dimension=parameters if name == "identity" else parameters // 10)
    x = rows(41, parameters)
    whole = project(projector, x)
    assert torch.equal(torch.cat([project(projector, part) for part in x.split(1)]), whole)
    assert torch.equal(torch.cat([project(projector, part) for part in x.split(7)]), whole)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    assert torch.equal(project(projector, x[order]), whole[order])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_not_finite_leaves_the_others_alone(name):
    projector, x = make(name), rows(5)
    clean = project(projector, x)
    x[2, 3], x[2, 4] = float("nan"), float("inf")
    poisoned = project(projector, x)
    others = [0, 1, 3, 4]
    assert torch.equal(poisoned[others], clean[others])
    assert not torch.isfinite(poisoned[2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_slices_add_up_to_the_whole(name):
    x = rows(4)
    whole = project(make(name), x)
    assert torch.allclose(project(make(name), x, cuts=(1, 5, 50)), whole, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_adds_to_what_is_there(name):
    projector, x = make(name), rows(3)
    out = torch.ones(3, D)
    projector.add_slice(out, x, 0)
    assert torch.allclose(out, 1 + project(projector, x), atol=1e-6)


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_is_a_matrix(name):
    x = rows(3)
    assert torch.equal(project(make(name, seed=5), x), project(make(name, seed=5), x))
    assert not torch.allclose(project(make(name, seed=5), x), project(make(name, seed=6), x), atol=0.1)
    assert not torch.allclose(project(make(name, seed=5), x), project(make(name, seed=5 + 2**32), x), atol=0.1)


STATED = [  # projector, options, D, P, its variance
    ("rademacher", {}, 19, 40, dense_variance),
    ("sparse_jl", {"nonzeros": 1}, 16, 56, partial(sparse_jl_variance, nonzeros=1)),
    ("sparse_jl", {"nonzeros": 3}, 19, 40, partial(sparse_jl_variance, nonzeros=3)),
    ("hadamard", {"block": 4}, 19, 60, partial(hadamard_variance, block=4)),
    ("hadamard", {"block": 16}, 16, 40, partial(hadamard_variance, block=16)),
    ("factored", {"columns": 3}, 16, 24, partial(factored_variance, columns=3)),
]


def test_every_random_projector_states_its_variance():
    assert {name for name, *_ in STATED} == set(RANDOM)


@pytest.mark.parametrize(("name", "options", "dimension", "parameters", "stated"), STATED)
def test_inner_products_have_the_mean_and_the_variance_of_the_docstring(name, options, dimension, parameters, stated):
    """Over 1000 seeds; the tolerances are five standard errors."""
    n = 1000
    x, y = rows(2, parameters, dtype=torch.float64)
    x[:3] *= 4  # some coordinates are larger
    y = x + 0.5 * y
    estimates = []
    for seed in range(n):
        px, py = project(make(name, seed, dimension, parameters, **options), torch.stack([x, y]), dtype=torch.float64)
        estimates.append(px @ py)
    found = torch.stack(estimates)
    variance = stated(x.numpy(), y.numpy(), dimension)
    assert name == "factored" or variance <= dense_variance(x.numpy(), y.numpy(), dimension) * (1 + 1e-12)
    assert abs(found.mean() - x @ y) < 5 * (variance / n) ** 0.5
    fourth = ((found - found.mean()) ** 4).mean()
    assert abs(found.var() - variance) < 5 * ((fourth - found.var() ** 2) / n) ** 0.5


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(("dimension", "parameters"), [(100, 7), (7, 100), (1, 5), (96, 1)])
def test_any_shape_keeps_the_norm_on_average(name, dimension, parameters):
    x = rows(1, parameters)
    squares = [float(project(make(name, seed, dimension, parameters), x).square().sum()) for seed in range(100)]
    columns = math.isqrt(dimension) if name == "factored" else dimension
    error = 5 * (2 / columns / 100) ** 0.5  # the relative variance is at most 2 / D
    assert sum(squares) / 100 == pytest.approx(float(x.square().sum()), rel=error)


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_and_no_coordinates_change_nothing(name):
    projector = make(name)
    assert project(projector, rows(0)).shape == (0, D)
    out = torch.ones(3, D)
    projector.add_slice(out, torch.zeros(3, 0), 5)
    assert torch.equal(out, torch.ones(3, D))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [{"nonzero": 2}, {"cache_bytes": -1}, {"cache_bytes": "1G"}, {"nonzeros": 0}, {"block": 3}, {"columns": 10}],
)
def test_a_wrong_option_is_refused_with_its_key(name, options):
    with pytest.raises(ConfigError, match=f"features.projector.options.{next(iter(options))}"):
        make(name, **options)
