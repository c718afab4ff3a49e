"""Directions of the gradient against the formula, number by number."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from influray.features.preconditioners import AdamDirection, epsilon_share, make_direction
from influray.model.checkpoints import AdamMoments
from influray.model.tracked_weights import track
from influray.protocols import ArtifactMismatch
from tests.reference.adam_direction import adam_number


def tracked():
    torch.manual_seed(0)
    return track([("a", torch.nn.Linear(3, 2, bias=False)), ("b", torch.nn.Linear(2, 5, bias=False))])


def moments(weights, **changes):
    torch.manual_seed(1)
    first = {w.name: torch.randn_like(w.module.weight.detach()) for w in weights}
    second = {name: 1e-3 * value**2 for name, value in first.items()}
    settings = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "step": 10, **changes}
    return AdamMoments(exp_avg=first, exp_avg_sq=second, **settings)


@pytest.mark.parametrize("mode", ["less", "adamw"])
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_adam_is_the_formula(mode, momentum, epsilon):
    torch.manual_seed(0)
    g, m, v = torch.randn(4, 7, dtype=torch.float64), torch.randn(7).double(), torch.rand(7).double() ** 4
    settings = {"beta1": 0.8, "beta2": 0.95, "epsilon": epsilon}
    found = AdamDirection(m, v, **settings, epsilon_mode=mode, momentum=momentum)(g)
    for b in range(4):
        for i in range(7):
            expected = adam_number(float(g[b, i]), float(m[i]), float(v[i]), *settings.values(), mode, momentum)
            assert float(found[b, i]) == pytest.approx(expected, rel=1e-12)


def test_adam_leaves_its_inputs_as_they_are():
    g, m, v = torch.ones(2, 3), torch.ones(3), torch.ones(3)
    AdamDirection(m, v, beta1=0.9, beta2=0.99, epsilon=1e-8)(g)
    assert torch.equal(g, torch.ones(2, 3))
    assert torch.equal(m, torch.ones(3))
    assert torch.equal(v, torch.ones(3))


def test_each_weight_meets_its_own_moments():
    weights = tracked()
    state = moments(weights)
    direction = make_direction("adam", weights, state, epsilon_mode="adamw", momentum=False)
    for weight in weights:
        grad = torch.randn(2, weight.size)
        expected = AdamDirection(
            state.exp_avg[weight.name].reshape(-1),
            state.exp_avg_sq[weight.name].reshape(-1),
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            epsilon_mode="adamw",
            momentum=False,
        )(grad)
        assert torch.equal(direction(weight, grad), expected)


def test_plain_and_sign_need_no_moments():
    weights, grad = tracked(), torch.tensor([[-2.0, 0.0, 3.0]])
    assert torch.equal(make_direction("sgd", weights, None)(weights[0], grad), grad)
    assert torch.equal(make_direction("sign", weights, None)(weights[0], grad), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_adam_without_moments_is_refused():
    with pytest.raises(ArtifactMismatch, match="needs the optimizer's moments"):
        make_direction("adam", tracked(), None)


def without(table, name):
    return {key: value for key, value in table.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"exp_avg": without(s.exp_avg, "b")}, "no exp_avg of b"),
        (lambda s: {"exp_avg_sq": without(s.exp_avg_sq, "a")}, "no exp_avg_sq of a"),
        (lambda s: {"exp_avg": {**s.exp_avg, "c": torch.ones(1)}}, "exp_avg of c, which the adapter has not"),
        (lambda s: {"exp_avg": {**s.exp_avg, "a": torch.ones(3, 2)}}, r"exp_avg of a has shape \(3, 2\).*\(2, 3\)"),
        (lambda s: {"exp_avg_sq": {**s.exp_avg_sq, "a": -torch.ones(2, 3)}}, "exp_avg_sq of a is not finite or neg"),
        (lambda s: {"exp_avg": {**s.exp_avg, "b": torch.full((5, 2), torch.nan)}}, "exp_avg of b is not finite"),
    ],
)
def test_moments_of_another_adapter_are_refused_by_parameter(change, message):
    weights = tracked()
    state = moments(weights)
    with pytest.raises(ArtifactMismatch, match=message):
        make_direction("adam", weights, dataclasses.replace(state, **change(state)))


@pytest.mark.parametrize("beta", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_betas_that_are_no_averages_are_refused(beta, value):
    weights = tracked()
    with pytest.raises(ArtifactMismatch, match="betas are .*below 1"):
        make_direction("adam", weights, moments(weights, **{beta: value}))


@pytest.mark.parametrize("mode", ["less", "adamw"])
@pytest.mark.parametrize("momentum", [True, False])
def test_adam_in_float32_is_the_formula_to_a_few_ulps(mode, momentum):
    """Gradients far below the moments, beside them and far above; each sum may cancel, so against its largest term."""
    torch.manual_seed(0)
    m = torch.randn(4000) * 10.0 ** torch.randint(-9, 0, (4000,))
    g, v = m * 10.0 ** torch.randint(-3, 4, (3, 4000)), m.square()
    settings = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "epsilon_mode": mode, "momentum": momentum}
    found = AdamDirection(m, v, **settings)(g)
    exact = AdamDirection(m.double(), v.double(), **settings)(g.double())
    largest = AdamDirection(m.double().abs(), v.double(), **settings)(g.double().abs())
    assert found.dtype == torch.float32
    assert float(((found - exact).abs() / largest).max()) < 1e-6


def test_the_share_of_epsilon_counts_coordinates_below_it():
    second = {"a": torch.tensor([1e-12, 1e-7]), "b": torch.tensor([[1e-20, 1.0]])}
    state = AdamMoments(exp_avg=second, exp_avg_sq=second, beta1=0.9, beta2=0.999, epsilon=1e-8, step=1)
    assert epsilon_share(state, "less") == 0.5
    assert epsilon_share(state, "adamw") == 0.25  # against the root: 1e-16 before it
