"""The gradient path on a GPU against the same on CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influray.config import FeaturesConfig
from influray.features.gradient import GradientFeaturizer
from influray.features.projectors.hadamard import HadamardProjector
from influray.features.projectors.rademacher import RademacherProjector
from influray.features.projectors.sparse_jl import SparseJLProjector
from influray.features.token_budget import GPU_SHARE, made_up_batch, resolve_token_budget
from tests.reference.loop_gradients import loop_gradients
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import ATTENTION, mixed_batch, with_lora

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]


def features(device, name="rademacher", dtype=torch.float32, dimension=256):
    model = with_lora(tiny_llama(dtype=dtype), ATTENTION).to(device)
    settings = FeaturesConfig.model_validate({"projector": {"name": name, "dimension": dimension}})
    return GradientFeaturizer(model, settings, None, "sgd", device)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("seed", "dimension"), [(0, 64), (-3, 100), (2**40, 1000)])
def test_the_projection_matrix_has_the_same_bits_as_on_cpu(seed, dimension):
    on_gpu = RademacherProjector(dimension, 5000, seed, "cuda").matrix(100, 5000)
    assert torch.equal(on_gpu.cpu(), RademacherProjector(dimension, 5000, seed, "cpu").matrix(100, 5000))


@pytest.mark.parametrize("kind", [RademacherProjector, SparseJLProjector, HadamardProjector])
def test_a_row_has_the_same_bits_in_every_batch(kind):
    projector = kind(256, 20000, 0, "cuda")
    x = torch.randn(41, 20000, device="cuda", generator=torch.Generator("cuda").manual_seed(0))

    def project(part):
        out = torch.zeros(len(part), 256, device="cuda")
        projector.add_slice(out, part, 0)
        return out

    assert torch.equal(torch.cat([project(part) for part in x.split(7)]), project(x))


@pytest.mark.parametrize(
    ("kind", "options"), [(SparseJLProjector, {"nonzeros": s}) for s in (1, 4)] + [(HadamardProjector, {"block": 32})]
)
@pytest.mark.parametrize("seed", [0, -3, 2**40])
def test_elementwise_projections_have_the_same_bits_as_on_cpu(kind, options, seed):
    x = torch.randn(5, 20000)
    outs = []
    for device in ("cpu", "cuda"):
        outs.append(torch.zeros(5, 250, device=device))
        kind(250, 20000, seed, device, **options).add_slice(outs[-1], x.to(device), 0)
    assert torch.equal(outs[1].cpu(), outs[0])


@pytest.mark.parametrize("name", ["rademacher", "sparse_jl", "hadamard"])
def test_features_are_those_of_the_cpu(name):
    on_gpu, on_cpu = (features(device, name).compute(mixed_batch()) for device in ("cuda", "cpu"))
    assert (cosine(on_gpu.feature_BD, on_cpu.feature_BD) > 1 - 1e-5).all()
    np.testing.assert_allclose(on_gpu.norm_B, on_cpu.norm_B, rtol=1e-3)
    np.testing.assert_allclose(on_gpu.loss_B, on_cpu.loss_B, rtol=1e-5)


def test_gradients_are_those_of_the_float64_loop():
    model = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    expected = loop_gradients(model, mixed_batch()).numpy()
    block = features("cuda", "identity", dimension=expected.shape[1]).compute(mixed_batch())
    assert (cosine(block.feature_BD, expected) > 1 - 1e-5).all()
    np.testing.assert_allclose(block.grad_norm_B, np.linalg.norm(expected, axis=1), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_batch_gives_the_same_bytes(dtype):
    blocks = [features("cuda", dtype=dtype).compute(mixed_batch()) for _ in range(2)]
    assert np.array_equal(blocks[0].feature_BD, blocks[1].feature_BD)
    assert np.array_equal(blocks[0].norm_B, blocks[1].norm_B)


def test_the_token_budget_is_found_by_trial_and_repeats():
    featurizer = features("cuda")
    model = featurizer._gradients.model
    before = resolve_token_budget("auto", model, "cuda", 512, featurizer.compute)
    taken = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert resolve_token_budget("auto", model, "cuda", 512, featurizer.compute) == before
    del taken
    torch.cuda.reset_peak_memory_stats()
    featurizer.compute(made_up_batch(before, 16))
    assert torch.cuda.max_memory_allocated() <= GPU_SHARE * torch.cuda.get_device_properties(0).total_memory
