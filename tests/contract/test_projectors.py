"""Laws that every projector of the registry keeps."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from influray.protocols import ConfigError, Projector
from influray.registry import PROJECTORS
from influray.registry import make as make_method
from influray.testing.projectors import PROJECTOR_LAWS, projected
from tests.reference.dense_projection import dense_variance, factored_variance, hadamard_variance, sparse_jl_variance

P, D = 96, 96  # equal, so that the identity can be among them
NAMES = sorted(PROJECTORS)
RANDOM = sorted(set(NAMES) - {"identity"})


def make(name, seed=0, dimension=D, parameters=P, **options) -> Projector:
    return make_method("projectors", name, options, dimension, parameters, seed, "cpu")


def rows(n, parameters=P, seed=1, dtype=torch.float32):
    return torch.randn(n, parameters, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("law", PROJECTOR_LAWS, ids=lambda law: law.__name__)
def test_it_obeys_the_laws_of_its_seam(name, law):
    law(lambda dimension, parameters, seed: make(name, seed, dimension, parameters))


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("parameters", [96, 20000])
def test_a_row_has_the_same_bits_in_every_batch_also_where_there_are_fewer_columns(name, parameters):
    projector, x = make(name, parameters=parameters, dimension=parameters // 10), rows(41, parameters)
    whole = projected(projector, x)
    assert torch.equal(torch.cat([projected(projector, part) for part in x.split(7)]), whole)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    assert torch.equal(projected(projector, x[order]), whole[order])


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_is_a_matrix(name):
    x = rows(3)
    assert torch.equal(projected(make(name, seed=5), x), projected(make(name, seed=5), x))
    assert not torch.allclose(projected(make(name, seed=5), x), projected(make(name, seed=6), x), atol=0.1)
    assert not torch.allclose(projected(make(name, seed=5), x), projected(make(name, seed=5 + 2**32), x), atol=0.1)


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
        px, py = projected(make(name, seed, dimension, parameters, **options), torch.stack([x, y]))
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
    squares = [float(projected(make(name, seed, dimension, parameters), x).square().sum()) for seed in range(100)]
    columns = math.isqrt(dimension) if name == "factored" else dimension
    error = 5 * (2 / columns / 100) ** 0.5  # the relative variance is at most 2 / D
    assert sum(squares) / 100 == pytest.approx(float(x.square().sum()), rel=error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [{"nonzero": 2}, {"cache_bytes": -1}, {"cache_bytes": "1G"}, {"nonzeros": 0}, {"block": 3}, {"columns": 10}],
)
def test_a_wrong_option_is_refused_with_its_key(name, options):
    with pytest.raises(ConfigError, match=f"features.projector.options.{next(iter(options))}"):
        make(name, **options)
