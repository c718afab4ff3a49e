"""RMS norms that stand in for a model's own: their values, their gradients, which are found, and what they keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from influray.model.frozen_norm import FrozenNorm, frozen_norms
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import FAMILIES, family


class Norm(nn.Module):
    """An RMS norm as models write it; `shift` makes it something else."""

    def __init__(self, features, seed=0, epsilon=1e-6, added=0.0, shift=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(features, generator=generator), requires_grad=False)
        self.eps, self._added, self._shift = epsilon, added, shift

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return ((self._added + self.weight.float()) * wide + self._shift).to(x.dtype)


def by_loop(x, grad, weight, epsilon):
    """(y, dL/dx) in float64, row by row, from y_i = w_i x_i / r and dr/dx_j = x_j / (H r)."""
    found = [np.zeros(x.shape), np.zeros(x.shape)]
    for n in np.ndindex(x.shape[:-1]):
        H, row = x.shape[-1], x[n]
        r = np.sqrt(np.mean(row**2) + epsilon)
        found[0][n] = weight * row / r
        for j in range(H):
            jacobian_j = weight * ((np.arange(H) == j) / r - row * row[j] / (H * r**3))
            found[1][n][j] = grad[n] @ jacobian_j
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 24),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([1e-3, 1.0, 300.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_formula_in_float64(features, leading, size, gemma, seed):
    torch.manual_seed(seed)
    norm = Norm(features, seed, added=float(gemma))
    x = (size * torch.randn(*leading, features)).requires_grad_()
    grad = torch.randn(*leading, features)
    (made,) = frozen_norms(nn.Sequential(norm))
    y = made.forward(x)
    y.backward(grad)
    arrays = [t.detach().double().numpy() for t in (x, grad, norm.weight + float(gemma))]
    expected_y, expected_grad = by_loop(*arrays, norm.eps)
    assert np.allclose(y.detach(), expected_y, rtol=1e-5, atol=1e-6)
    # A gradient is what is left of two terms of about |dL/dy w| / r, and may be nothing.
    x_NH, grad_NH, weight_H = arrays
    terms_N = np.linalg.norm(grad_NH * weight_H, axis=-1) / np.sqrt(np.mean(x_NH**2, axis=-1) + norm.eps)
    allowed_NH = 1e-5 * np.abs(expected_grad) + 1e-6 * terms_N[..., None]
    assert np.all(np.abs(x.grad.double().numpy() - expected_grad) <= allowed_NH)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma", "gemma2", "granite", "qwen3_moe"])
def test_all_norms_of_a_family_are_found(name):
    model = family(name, **FAMILIES[name][1])
    there = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert there
    assert [made.layer for made in frozen_norms(model)] == there


@pytest.mark.parametrize("name", ["gpt2", "phi", "cohere"])
def test_norms_that_subtract_a_mean_are_left_alone(name):
    assert frozen_norms(family(name, **FAMILIES[name][1])) == []


def test_what_is_not_quite_that_norm_is_left_alone():
    odd = Norm(8)
    odd.forward = Norm(8).forward  # accelerate, say, puts another one there
    hooked = Norm(8)
    hooked.register_forward_hook(lambda *_: None)
    wide = Norm(8).double()
    parts = [Norm(8, shift=1e-3), odd, hooked, wide, nn.LayerNorm(8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 8)]
    assert frozen_norms(nn.Sequential(*parts)) == []

    class Lying(Norm):
        def forward(self, x):
            wide = x.float()
            return self.weight * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 2 * self.eps)

    assert frozen_norms(nn.Sequential(Lying(8))) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_rounded_once(dtype):
    torch.manual_seed(0)
    norm = Norm(64).to(dtype)
    (made,) = frozen_norms(nn.Sequential(norm))
    x = torch.randn(50, 64).to(dtype).requires_grad_()
    grad = torch.randn(50, 64).to(dtype)
    y = made.forward(x)
    y.backward(grad)
    assert y.dtype == x.grad.dtype == dtype
    exact, exact_grad = by_loop(*(t.detach().double().numpy() for t in (x, grad, norm.weight)), norm.eps)
    half = 0.51 * torch.finfo(dtype).eps  # a unit in the last place is at most eps of a value
    assert np.all(np.abs(y.detach().double().numpy() - exact) <= half * np.abs(exact) + 1e-7)
    assert np.all(np.abs(x.grad.double().numpy() - exact_grad) <= half * np.abs(exact_grad) + 1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_has_the_same_bits_in_any_company(poison):
    torch.manual_seed(0)
    made = FrozenNorm(norm := Norm(96), norm.weight, norm.eps)

    def both(x, grad):
        x = x.clone().requires_grad_()
        y = made.forward(x)
        y.backward(grad)
        return torch.stack([y.detach(), x.grad])

    x, grad = torch.randn(300, 96), torch.randn(300, 96)
    whole = both(x, grad)
    for cut in (1, 5, 64, 233):
        assert torch.equal(torch.cat([both(x[:cut], grad[:cut]), both(x[cut:], grad[cut:])], 1), whole)
    x[5] = poison
    beside = both(x, grad)
    assert not torch.isfinite(beside[:, 5]).all()
    assert torch.equal(beside[:, :5], whole[:, :5])
    assert torch.equal(beside[:, 6:], whole[:, 6:])


def test_only_the_input_is_kept_for_the_backward():
    model, kept = tiny_llama(), []
    norm = model.model.norm
    (made,) = frozen_norms(nn.Sequential(norm))
    x = torch.randn(7, 5, norm.weight.shape[0]).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made.forward(x)
    assert sorted(t.numel() for t in kept) == [7 * 5, x.numel()]
