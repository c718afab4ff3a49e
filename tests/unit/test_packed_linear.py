"""Packed weights against plain products, in values, and in bits whatever rows are beside a row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from influray.model import packed_linear
from influray.model.packed_linear import FrozenLinear, FrozenWeight, PackedWeight, pack_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_packed_products_are_those_of_the_weight_in_float64(inputs, outputs, batch, tokens, biased, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=biased)
    x = torch.randn(batch, tokens, inputs)
    grad = torch.randn(batch, tokens, outputs)
    exact = nn.Linear(inputs, outputs, bias=biased).double()
    exact.load_state_dict(layer.state_dict())
    wide = x.double().requires_grad_()
    exact(wide).backward(grad.double())
    seen = x.clone().requires_grad_()
    found = FrozenLinear(layer.requires_grad_(False)).forward(seen)
    found.backward(grad)
    assert torch.allclose(found.double(), exact(wide), rtol=1e-5, atol=1e-5)
    assert torch.allclose(seen.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)


def test_transposed_rows_are_read_right():
    torch.manual_seed(0)
    weight, x = torch.randn(40, 33), torch.randn(3, 33, 7).transpose(1, 2)
    assert torch.allclose(PackedWeight(weight).outputs(x), FrozenWeight(weight).outputs(x), atol=1e-5)
    grad = torch.randn(3, 40, 7).transpose(1, 2)
    assert torch.allclose(
        PackedWeight(weight).input_gradient(grad), FrozenWeight(weight).input_gradient(grad), atol=1e-5
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_has_the_same_bits_in_any_company(poison):
    torch.manual_seed(0)
    weight, x = PackedWeight(torch.randn(96, 64)), torch.randn(700, 64)
    whole = weight.outputs(x)
    for cut in (1, 5, 64, 333):
        assert torch.equal(torch.cat([weight.outputs(x[:cut]), weight.outputs(x[cut:])]), whole)
    x[5] = poison
    beside = weight.outputs(x)
    assert not torch.isfinite(beside[5]).any()
    assert torch.equal(beside[:5], whole[:5])
    assert torch.equal(beside[6:], whole[6:])


def test_only_plain_layers_in_single_precision_that_fit_are_packed(monkeypatch):
    class Own(nn.Linear):
        pass

    parts = [nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(4, 4), nn.Linear(64, 64).double(), Own(64, 64)]
    model = nn.Sequential(*parts)
    assert [packed.layer for packed in pack_linear(model, [parts[1]])] == [parts[0]]
    monkeypatch.setattr(packed_linear, "_PACK_BYTES", 4 * 64 * 64 * 4 - 1)  # two layers in two copies, less a byte
    assert pack_linear(model, []) == []
