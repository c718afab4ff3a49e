"""Packed batches: the rows of padded ones and of a plain loop, for every attention that the families have."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from influray.config import FeaturesConfig
from influray.features.gradient import GradientFeaturizer
from influray.model.batch import make_batch, make_packed_batch
from influray.model.example_gradients import ExampleGradients
from influray.model.stacked_attention import attending_by_stack
from influray.protocols import ConfigError, TokenizedExample
from tests.reference.dense_projection import dense_factored
from tests.reference.loop_gradients import loop_gradient, loop_gradients
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import (
    ATTENTION,
    FAMILIES,
    MLP,
    assert_rows,
    by_hooks,
    example,
    family,
    mixed_batch,
    with_lora,
)
from tests.unit.test_gradient_features import P, config


def mixed_stacks():
    """Three stacks of 2 to 12, 17 to 23 and 30 tokens, not in order of length."""
    batch = mixed_batch()
    return [[batch[3], batch[1], batch[4]], [batch[0], batch[2]], [batch[5]]]


def flat(stacks):
    return [e for stack in stacks for e in stack]


def packed_rows(gradients, stacks):
    """(gradients [B, P], losses [B]) of a packed batch."""
    examples = flat(stacks)
    out = torch.full((len(examples), gradients.parameters), torch.nan, dtype=torch.float64)

    def consume(weight, block):
        assert block.shape == (len(examples), weight.size)
        out[:, weight.offset : weight.offset + weight.size] = block

    return out, gradients.run(make_packed_batch(stacks, "cpu"), consume)


def test_a_packed_batch_holds_every_example_with_its_own_positions_and_labels():
    stacks = mixed_stacks()
    batch = make_packed_batch(stacks, "cpu")
    examples = flat(stacks)
    assert batch.packing.sizes == ((3, 12), (2, 23), (1, 30))
    assert batch.input_ids_BS.shape == (1, 3 * 12 + 2 * 23 + 30)
    assert batch.loss_tokens_B.tolist() == [e.loss_tokens for e in examples]
    assert batch.label_n.tolist() == [int(t) for e in examples for t in e.input_ids_S[e.loss_mask_S]]
    assert batch.input_ids_BS[0, batch.position_n + 1].tolist() == batch.label_n.tolist()
    assert batch.example_n().tolist() == [b for b, e in enumerate(examples) for _ in range(e.loss_tokens)]
    places = torch.arange(batch.input_ids_BS.numel()).view(1, -1, 1)
    for rows, tokens_bs1 in zip(batch.stack_rows(), batch.by_stack(places), strict=True):
        for e, place_s in zip(examples[rows], tokens_bs1[..., 0], strict=True):
            own = place_s[: e.tokens]
            assert batch.input_ids_BS[0, own].tolist() == e.input_ids_S.tolist()
            assert batch.packing.position_ids_BS[0, own].tolist() == list(range(e.tokens))
            assert set(batch.input_ids_BS[0, place_s[e.tokens :]].tolist()) <= {int(e.input_ids_S[0])}


def test_one_stack_is_a_padded_batch():
    batch, padded = make_packed_batch([mixed_batch()], "cpu"), make_batch(mixed_batch(), "cpu")
    assert batch.packing is None
    assert torch.equal(batch.input_ids_BS, padded.input_ids_BS)


@pytest.mark.parametrize("targets", [ATTENTION, MLP, "all-linear"], ids=str)
@pytest.mark.parametrize("merged", [True, False])
def test_rows_are_those_of_a_loop_in_float64(targets, merged, monkeypatch):
    if not merged:
        by_hooks(monkeypatch)
    model = with_lora(tiny_llama(dtype=torch.float64), targets)
    expected = [loop_gradient(model, e) for e in flat(mixed_stacks())]
    gradients = ExampleGradients(model)
    assert gradients.packing_problem == ""
    found, loss = packed_rows(gradients, mixed_stacks())
    assert bool(gradients.merged) == merged
    assert_rows(found, [g for g, _ in expected], 1e-12)
    assert loss.tolist() == pytest.approx([value for _, value in expected], rel=1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_those_of_a_loop_for_other_families(name, attention):
    """Sliding windows shorter than the examples, learned positions, soft caps, parallel blocks and experts."""
    if (name, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no sdpa for it: it caps its scores")
    targets, changes = FAMILIES[name]
    base = family(name, **changes, attn_implementation=attention).double()
    assert base.config._attn_implementation == attention
    if "num_experts" in changes:
        base.set_experts_implementation("eager")  # the grouped product knows no float64
    model = with_lora(base, targets)
    expected = loop_gradients(model, flat(mixed_stacks()))
    gradients = ExampleGradients(model)
    assert gradients.packing_problem == ""
    found, _ = packed_rows(gradients, mixed_stacks())
    assert_rows(found, expected, 1e-6)  # some have a softmax in float32


lengths_and_cuts = st.lists(
    st.tuples(st.integers(2, 40), st.floats(0, 1), st.integers(0, 99), st.booleans()), min_size=2, max_size=8
)


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.sampled_from(["llama", "qwen3", "mistral", "gemma", "phi"]), lengths_and_cuts)
def test_rows_of_random_lengths_in_random_stacks_are_those_of_a_loop_in_float64(name, sizes):
    """In float32 to 1e-5, or to what a plain float32 loop loses where a random model is badly conditioned."""
    stacks = [[]]
    for n, share, seed, cut in sizes:
        if cut and stacks[-1]:
            stacks.append([])
        stacks[-1].append(example(seed, n, [(1 + int(share * (n - 2)), n)]))
    examples = flat(stacks)
    targets, changes = FAMILIES.get(name, (ATTENTION, {}))
    exact, single = (with_lora(family(name, **changes).to(dtype), targets) for dtype in (torch.float64, torch.float32))
    expected, plain = loop_gradients(exact, examples), loop_gradients(single, examples).double()
    lost = float(((plain - expected).norm(dim=1) / expected.norm(dim=1)).max())
    found, loss = packed_rows(ExampleGradients(single), stacks)
    assert_rows(found, expected, max(1e-5, 8 * lost))
    np.testing.assert_allclose(loss, [loop_gradient(exact, e)[1] for e in examples], rtol=1e-5)


def test_every_stack_takes_the_fast_causal_kernel_and_only_windows_that_cut_need_a_mask(monkeypatch):
    seen = []
    attend = F.scaled_dot_product_attention

    def watching(query, *args, attn_mask=None, is_causal=False, **kwargs):
        seen.append((query.shape[0], query.shape[2], attn_mask is None and is_causal))
        return attend(query, *args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    for name, changes, causal in (
        ("llama", {}, [True, True, True]),
        ("mistral", {"sliding_window": 20}, [True, False, False]),
    ):
        gradients = ExampleGradients(with_lora(family(name, **changes), ATTENTION))
        assert gradients.packing_problem == ""
        with monkeypatch.context() as patched:
            patched.setattr(F, "scaled_dot_product_attention", watching)
            packed_rows(gradients, mixed_stacks())
        sizes = [(3, 12), (2, 23), (1, 30)]
        assert seen == [(*size, flag) for size, flag in zip(sizes, causal, strict=True)] * 2  # two layers
        seen.clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rows_are_those_of_padded_batches_to_rounding(dtype):
    gradients = ExampleGradients(with_lora(tiny_llama(dtype=dtype), ATTENTION))
    assert gradients.packing_problem == ""
    expected = loop_gradients(with_lora(tiny_llama(dtype=dtype).double(), ATTENTION), flat(mixed_stacks()))
    found, _ = packed_rows(gradients, mixed_stacks())
    assert_rows(found, expected, 0.05)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_checkpointing_changes_no_row(name, merged, monkeypatch):
    if not merged:
        by_hooks(monkeypatch)
    model = with_lora(family(name, **FAMILIES.get(name, ((), {}))[1]).double(), ATTENTION)
    plain, _ = packed_rows(ExampleGradients(model), mixed_stacks())
    gradients = ExampleGradients(model, checkpointing=True)
    found, _ = packed_rows(gradients, mixed_stacks())
    assert torch.equal(found, plain)


def test_a_tracked_head_takes_all_logits_of_a_packed_batch():
    model = with_lora(tiny_llama(dtype=torch.float64, tie_word_embeddings=False), ["q_proj", "lm_head"])
    gradients = ExampleGradients(model)
    assert gradients.head == "whole"
    found, _ = packed_rows(gradients, mixed_stacks())
    assert_rows(found, loop_gradients(model, flat(mixed_stacks())), 1e-12)


def test_a_layer_that_is_called_twice_is_handed_on_once_with_the_sum():
    base = tiny_llama(dtype=torch.float64)
    base.model.layers[1] = base.model.layers[0]
    model = with_lora(base, ATTENTION)
    found, _ = packed_rows(ExampleGradients(model), mixed_stacks())
    assert_rows(found, loop_gradients(model, flat(mixed_stacks())), 1e-12)


@pytest.mark.parametrize("columns", [2, 20])
def test_factored_rows_are_those_of_the_gradient_that_is_not_formed(columns):
    model = with_lora(tiny_llama(), ATTENTION)
    featurizer = GradientFeaturizer(model, config("factored", 400, {"columns": columns}), None, "sgd")
    shapes = [(w.offset, *w.module.weight.shape) for w in featurizer._gradients.weights]
    reference = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    exact = loop_gradients(reference, flat(mixed_stacks())).numpy()
    block = featurizer.compute_packed(mixed_stacks())
    expected = exact @ dense_factored(shapes, 400, 0, columns)
    np.testing.assert_allclose(block.norm_B, np.linalg.norm(expected, axis=1), rtol=1e-4)
    np.testing.assert_allclose(block.grad_norm_B, np.linalg.norm(exact, axis=1), rtol=1e-4)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(block.feature_BD, unit, atol=6e-4 * np.abs(unit).max())


@pytest.mark.parametrize("name", ["identity", "sparse_jl", "hadamard"])
def test_features_are_those_of_padded_batches(name):
    featurizer = GradientFeaturizer(with_lora(tiny_llama(), ATTENTION), config(name, P), None, "sgd")
    assert featurizer.can_pack()
    packed, padded = featurizer.compute_packed(mixed_stacks()), featurizer.compute(flat(mixed_stacks()))
    again = featurizer.compute_packed(mixed_stacks())
    assert packed.row_B.tolist() == padded.row_B.tolist() == [3, 1, 4, 0, 2, 5]
    assert packed.loss_tokens_B.tolist() == padded.loss_tokens_B.tolist()
    for column in ("norm_B", "grad_norm_B", "loss_B"):
        np.testing.assert_allclose(getattr(packed, column), getattr(padded, column), rtol=1e-5)
    np.testing.assert_allclose(packed.feature_BD, padded.feature_BD, atol=1e-3 * np.abs(padded.feature_BD).max())
    assert np.array_equal(packed.feature_BD, again.feature_BD)
    assert np.array_equal(packed.norm_B, again.norm_B)
    at_once = list(featurizer.compute_all_packed([mixed_stacks(), mixed_stacks()[:1], mixed_stacks()]))
    assert [len(block.row_B) for block in at_once] == [6, 3, 6]
    assert all(np.array_equal(block.feature_BD, packed.feature_BD) for block in at_once[::2])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_row_that_fails_is_named_and_the_others_keep_their_bits(name):
    """Weights of zero times NaN are NaN: a block-diagonal mask over the line would spoil the whole line."""
    base = family(name, **FAMILIES.get(name, ((), {}))[1], tie_word_embeddings=False)
    with torch.no_grad():
        base.get_input_embeddings().weight[200] = torch.nan
    featurizer = GradientFeaturizer(with_lora(base, ATTENTION), config("sparse_jl", 64), None, "sgd")
    assert featurizer.can_pack()
    stacks = [[e for e in stack if 200 not in e.input_ids_S] for stack in mixed_stacks()]
    clean = featurizer.compute_packed(stacks)
    sick = TokenizedExample(77, stacks[1][0].input_ids_S.copy(), stacks[1][0].loss_mask_S)
    sick.input_ids_S[1] = 200
    untrained = example(78, 5, [])
    block = featurizer.compute_packed([[untrained], stacks[0], [sick, *stacks[1][1:]], stacks[2]])
    assert block.failures == {77: "non-finite loss", 78: "no trained token"}
    others = clean.row_B != stacks[1][0].row
    assert len(block.row_B) == len(clean.row_B) - 1
    for column in ("row_B", "feature_BD", "norm_B", "grad_norm_B", "loss_B"):
        assert np.array_equal(getattr(block, column), getattr(clean, column)[others])


def leaking():
    """A Llama whose first layer adds up what stands before a token in its line: causal, and yet not by example."""
    base = tiny_llama()
    base.model.layers[0].input_layernorm.register_forward_hook(lambda _, x, y: y + 0.3 * y.cumsum(1))
    return base


def masking():
    """A Llama whose attention makes its own causal mask."""
    base = tiny_llama()

    def own_mask(module, args, kwargs):
        S = kwargs["hidden_states"].shape[1]
        return args, {**kwargs, "attention_mask": torch.ones(S, S, dtype=torch.bool).tril()[None, None]}

    for layer in base.model.layers:
        layer.self_attn.register_forward_pre_hook(own_mask, with_kwargs=True)
    return base


def looking_ahead():
    base = tiny_llama()
    base.model.layers[0].input_layernorm.register_forward_hook(lambda _, x, y: y + y.roll(-2, 1))
    return base


def without_positions():
    return family("bloom", n_layer=2, n_head=4)


UNFIT = [
    (leaking, "logits of packed examples are off by"),
    (masking, "LlamaAttention makes its own mask"),
    (looking_ahead, "its real tokens see padding"),
    (without_positions, "it takes no position_ids"),
]


@pytest.mark.parametrize(("make", "reason"), UNFIT)
def test_a_model_that_cannot_be_packed_is_found_out_and_says_why_once(make, reason, caplog):
    targets = ["query_key_value"] if make is without_positions else ATTENTION
    settings = {"projector": {"dimension": 64}}
    model = with_lora(make(), targets)
    featurizer = GradientFeaturizer(model, FeaturesConfig.model_validate(settings), None, "sgd")
    with caplog.at_level(logging.WARNING):
        assert not featurizer.can_pack()
        assert not featurizer.can_pack()
    assert caplog.text.count(reason) == 1
    assert caplog.text.count("so batches are padded") == 1
    assert not featurizer.compute(mixed_batch()).failures
    featurizer.close()
    with pytest.raises(ConfigError, match=rf"features\.packing: .* cannot be packed \(.*{reason}.*auto or off"):
        GradientFeaturizer(model, FeaturesConfig.model_validate({**settings, "packing": "on"}), None, "sgd")
    assert model.get_base_model().config._attn_implementation == "sdpa" or make is without_positions


def test_after_a_packed_batch_the_model_is_as_it_was():
    model = with_lora(tiny_llama(), ATTENTION)
    ids = torch.arange(5, 15)[None]
    before = model(input_ids=ids).logits
    gradients = ExampleGradients(model)
    packed_rows(gradients, mixed_stacks())
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=ids).logits, before)
    with pytest.raises(ZeroDivisionError), attending_by_stack(model, [(1, 2)]):
        raise ZeroDivisionError
    assert torch.equal(model(input_ids=ids).logits, before)
