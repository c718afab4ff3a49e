"""The gradient path on a GPU against the same on CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influray.config import FeaturesConfig
from influray.data.batches import plan_batches
from influray.features.gradient import GradientFeaturizer
from influray.features.projectors.hadamard import HadamardProjector
from influray.features.projectors.rademacher import RademacherProjector
from influray.features.projectors.sparse_jl import SparseJLProjector
from influray.features.token_budget import GPU_SHARE, made_up_batch, resolve_token_budget
from influray.model.checkpoints import AdamMoments
from influray.model.frozen_norm import frozen_norms
from influray.model.tracked_weights import lora_weights
from influray.store.artifact import ShardStore
from influray.store.datastore import PartBuilder
from tests.reference.loop_gradients import loop_gradients
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import ATTENTION, example, family, mixed_batch, with_lora
from tests.unit.test_frozen_norm import Norm
from tests.unit.test_packing import mixed_stacks

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("added", [0.0, 1.0])
def test_norms_and_their_gradients_are_those_of_the_cpu(dtype, added):
    """Torch's own kernel where the weight is exact in the model's dtype, else ours."""
    torch.manual_seed(0)
    x, grad = torch.randn(300, 96).to(dtype), torch.randn(300, 96).to(dtype)
    found = []
    for device in ("cpu", "cuda"):
        (made,) = frozen_norms(torch.nn.Sequential(Norm(96, added=added).to(dtype).to(device)))
        states = x.to(device).requires_grad_()
        y = made.forward(states)
        y.backward(grad.to(device))
        found.append((y.detach().cpu().double(), states.grad.cpu().double()))
    for ours, expected in zip(found[1], found[0], strict=True):
        assert torch.allclose(ours, expected, rtol=max(1e-5, 2 * torch.finfo(dtype).eps), atol=1e-5)


def shard_rows(rows=48):
    """Lengths from 2 to 64, so that a shard has batches of many shapes."""
    return [example(row, 2 + 13 * row % 63, [(1, 2 + 13 * row % 63)]) for row in range(rows)]


def moments_of(model):
    generator = torch.Generator().manual_seed(5)
    first = {w.name: 1e-2 * torch.randn(w.module.weight.shape, generator=generator) for w in lora_weights(model)}
    second = {name: 0.1 * value**2 for name, value in first.items()}
    return AdamMoments(first, second, beta1=0.9, beta2=0.99, epsilon=1e-8, step=10)


def shard(device, folder, *, serial=False, step="auto", model=None, dtype=torch.float32, **features):
    """Return the sha256 of a shard of Adam rows, by a featurizer and a model made anew."""
    model = with_lora((model or tiny_llama)(dtype=dtype), ATTENTION).to(device)
    settings = FeaturesConfig.model_validate({"projector": {"name": "sparse_jl", "dimension": 256}, **features})
    featurizer = GradientFeaturizer(model, settings, moments_of(model), "adam", device, step)
    examples = shard_rows()
    batches = [[examples[i] for i in batch] for batch in plan_batches([e.tokens for e in examples], 256)]
    with PartBuilder(256, "int8") as part:
        for block in map(featurizer.compute, batches) if serial else featurizer.compute_all(batches):
            assert not block.failures
            part.add(block)
        return ShardStore(folder).commit("a", part.table(), {}).sha256


def of_experts(dtype):
    return family("mixtral", num_local_experts=4, num_experts_per_tok=2).to(dtype)


@pytest.mark.parametrize("step", ["torch", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_shard_has_the_same_bytes_every_time(step, dtype, tmp_path):
    found = {shard("cuda", tmp_path / str(i), step=step, dtype=dtype, serial=i == 2) for i in range(5)}
    assert len(found) == 1


def test_a_checkpointed_shard_has_the_same_bytes_every_time(tmp_path):
    options = {"gradient_checkpointing": True, "dtype": torch.bfloat16}
    assert len({shard("cuda", tmp_path / str(i), **options) for i in range(3)}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_shard_of_a_model_with_experts_has_the_same_bytes_every_time(dtype, tmp_path):
    assert len({shard("cuda", tmp_path / str(i), model=of_experts, dtype=dtype) for i in range(3)}) == 1


def test_the_fused_step_is_taken_and_repeats_its_bits():
    model = with_lora(tiny_llama(), ATTENTION).to("cuda")
    settings = FeaturesConfig.model_validate({"projector": {"name": "sparse_jl", "dimension": 256}})
    featurizer = GradientFeaturizer(model, settings, moments_of(model), "adam", "cuda")
    assert featurizer.step == "fused"
    weight = max(lora_weights(model), key=lambda w: w.size)
    block_Bp = torch.randn(300, weight.size, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    found = []
    for _ in range(20):
        out_BD = torch.zeros(300, 256, device="cuda")
        square_Bt = torch.zeros(300, featurizer.inner_step.parts, dtype=torch.float64, device="cuda")
        featurizer.inner_step.add(out_BD, square_Bt, weight, block_Bp)
        found.append((out_BD, square_Bt))
    assert all(torch.equal(out, found[0][0]) and torch.equal(square, found[0][1]) for out, square in found[1:])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)], ids=str)
def test_packed_batches_give_the_rows_of_padded_ones_and_the_same_bytes(dtype, tolerance):
    featurizer = features("cuda", dtype=dtype)
    assert featurizer.can_pack()
    first, second = (featurizer.compute_packed(mixed_stacks()) for _ in range(2))
    padded = featurizer.compute([e for stack in mixed_stacks() for e in stack])
    assert np.array_equal(first.feature_BD, second.feature_BD)
    assert np.array_equal(first.norm_B, second.norm_B)
    assert np.array_equal(first.row_B, padded.row_B)
    assert (cosine(first.feature_BD, padded.feature_BD) > 1 - tolerance).all()
    np.testing.assert_allclose(first.norm_B, padded.norm_B, rtol=10 * tolerance)


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
