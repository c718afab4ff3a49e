"""Laws that every projector of the registry keeps."""

from __future__ import annotations

import itertools

import pytest
import torch

from influray.protocols import ConfigError, Projector
from influray.registry import PROJECTORS, resolve

P, D = 96, 96  # equal, so that the identity can be among them
NAMES = sorted(PROJECTORS)
RANDOM = sorted(set(NAMES) - {"identity"})


def make(name, seed=0, dimension=D, parameters=P, **options) -> Projector:
    return resolve("projectors", name, "features.projector.name")(dimension, parameters, seed, "cpu", **options)


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
    projector = make(name, parameters=parameters, dimension=parameters if name == "identity" else D)
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


@pytest.mark.parametrize("name", RANDOM)
def test_inner_products_have_the_mean_and_the_variance_of_the_docstring(name):
    """Over 1500 seeds; the tolerances are five standard errors."""
    n, dimension, parameters = 1500, 16, 24
    x, y = rows(2, parameters, dtype=torch.float64)
    y = x + 0.5 * y
    estimates = []
    for seed in range(n):
        px, py = project(make(name, seed, dimension, parameters), torch.stack([x, y]), dtype=torch.float64)
        estimates.append(px @ py)
    found = torch.stack(estimates)
    variance = (x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x**2 * y**2).sum()) / dimension
    assert abs(found.mean() - x @ y) < 5 * (variance / n) ** 0.5
    fourth = ((found - found.mean()) ** 4).mean()
    assert abs(found.var() - variance) < 5 * ((fourth - found.var() ** 2) / n) ** 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"nonzero": 2}, {"cache_bytes": -1}, {"cache_bytes": "1G"}, {"nonzeros": 0}])
def test_a_wrong_option_is_refused_with_its_key(name, options):
    with pytest.raises(ConfigError, match=f"features.projector.options.{next(iter(options))}"):
        make(name, **options)
