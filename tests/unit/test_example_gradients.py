"""Per-example gradients of a batch against a plain autograd loop in float64."""

from __future__ import annotations

import logging

import numpy as np
import peft
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from influray.model import example_gradients
from influray.model.batch import make_batch
from influray.model.example_gradients import ExampleGradients
from influray.model.tracked_weights import linear_weights, lora_weights, track
from influray.protocols import ConfigError, TokenizedExample
from tests.reference.loop_gradients import loop_gradient, loop_gradients
from tests.tiny import tiny_llama

VOCAB = 261
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


def example(row, length, spans, vocab=VOCAB):
    """An example whose trained labels are the given [start, stop) spans of its tokens."""
    rng = np.random.default_rng(row)
    mask = np.zeros(length, dtype=bool)
    for start, stop in spans:
        mask[start:stop] = True
    return TokenizedExample(row, rng.integers(5, vocab, length).astype(np.int32), mask)


def mixed_batch():
    """Long and short, one turn and several, an answer of one token, everything trained, the last token alone."""
    return [
        example(0, 23, [(10, 23)]),
        example(1, 9, [(2, 4), (7, 9)]),
        example(2, 17, [(5, 6)]),
        example(3, 2, [(1, 2)]),
        example(4, 12, [(1, 12)]),
        example(5, 30, [(3, 8), (12, 13), (29, 30)]),
    ]


def with_lora(model, targets, seed=3, r=3):
    """The model with random LoRA matrices: B is not zero, so that A has gradients too."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=r, lora_alpha=6, lora_dropout=0.1, target_modules=targets))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def family(name, **changes):
    """A tiny random model of another family, from its transformers config."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 4,
        **changes,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**shape))


def collected(gradients, examples):
    """(gradients [B, P], losses [B], weight names in the order of their coming)."""
    out = torch.full((len(examples), gradients.parameters), torch.nan, dtype=torch.float64)
    order = []

    def consume(weight, block):
        assert block.shape == (len(examples), weight.size)
        order.append(weight.name)
        out[:, weight.offset : weight.offset + weight.size] = block

    loss = gradients.run(make_batch(examples, "cpu"), consume)
    assert sorted(order) == sorted(w.name for w in gradients.weights), "every weight comes once"
    return out, loss, order


def assert_rows(found, expected, tolerance):
    assert torch.isfinite(found).all()
    for b, (f, e) in enumerate(zip(found, expected, strict=True)):
        error = float((f - e).norm() / e.norm())
        assert error < tolerance, f"row {b} is off by {error:.2e} of its norm"


def by_hooks(monkeypatch):
    """Let no layer run merged: what half precision, GPUs and layers that are not plain LoRA take."""
    monkeypatch.setattr(example_gradients, "merge_lora", lambda *_: [])


@pytest.mark.parametrize("targets", [ATTENTION, MLP, ["v_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize(("tied", "merged"), [(True, True), (True, False), (False, True)])
def test_rows_are_those_of_a_loop_in_float64(targets, tied, merged, monkeypatch):
    if not merged:
        by_hooks(monkeypatch)
    model = with_lora(tiny_llama(dtype=torch.float64, tie_word_embeddings=tied), targets)
    expected = [loop_gradient(model, e) for e in mixed_batch()]
    gradients = ExampleGradients(model)
    found, loss, _ = collected(gradients, mixed_batch())
    assert gradients.head == "pieces"
    assert bool(gradients.merged) == merged
    assert_rows(found, [g for g, _ in expected], 1e-12)
    assert loss.tolist() == pytest.approx([value for _, value in expected], rel=1e-12)


FAMILIES = {
    "qwen3": (ATTENTION + MLP, {}),
    "mistral": (ATTENTION, {"sliding_window": 6}),
    "gemma": (ATTENTION + MLP, {}),
    "gemma2": (ATTENTION, {"sliding_window": 6, "final_logit_softcapping": 0.3, "query_pre_attn_scalar": 8}),
    "gpt_neox": (["query_key_value", "dense", "dense_h_to_4h"], {}),
    "phi": (["q_proj", "k_proj", "v_proj", "dense", "fc1"], {}),
    "cohere": (ATTENTION, {"logit_scale": 7.0}),
    "granite": (ATTENTION, {"logits_scaling": 0.1, "residual_multiplier": 0.5}),
    "gpt2": (["c_attn", "c_proj"], {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "qwen3_moe": (ATTENTION, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_those_of_a_loop_for_other_families(name):
    """Heads that scale or cap their logits are among them: the model's own head makes them."""
    targets, changes = FAMILIES[name]
    base = family(name, **changes).double()
    if "num_experts" in changes:
        base.set_experts_implementation("eager")  # the grouped product knows no float64
    model = with_lora(base, targets)
    expected = loop_gradients(model, mixed_batch())
    gradients = ExampleGradients(model)
    found, _, _ = collected(gradients, mixed_batch())
    assert gradients.head == "pieces"
    assert_rows(found, expected, 1e-6)  # some have a softmax in float32


def test_float32_rows_are_close_to_float64():
    expected = loop_gradients(with_lora(tiny_llama(dtype=torch.float64), ATTENTION), mixed_batch())
    gradients = ExampleGradients(with_lora(tiny_llama(), ATTENTION))
    assert len(gradients._packed) == 7  # the head and the other layers of two decoder layers
    found, _, _ = collected(gradients, mixed_batch())
    assert_rows(found, expected, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
def test_gradients_of_a_half_precision_base_are_float32(dtype, tolerance):
    rounded = tiny_llama(dtype=dtype)
    expected = loop_gradients(with_lora(tiny_llama(dtype=dtype).double(), ATTENTION), mixed_batch())
    gradients = ExampleGradients(with_lora(rounded, ATTENTION))
    assert {w.module.weight.dtype for w in gradients.weights} == {torch.float32}
    seen = set()
    out = torch.zeros(6, gradients.parameters)

    def consume(weight, block):
        seen.add(block.dtype)
        out[:, weight.offset : weight.offset + weight.size] = block

    gradients.run(make_batch(mixed_batch(), "cpu"), consume)
    assert seen == {torch.float32}
    assert_rows(out.double(), expected, tolerance)


def test_small_gradients_survive_a_float16_base():
    """Gradients of activations of about 1e-8, which float16 alone would flush to zero."""
    scale = 1e-6

    def weaken(_, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda grad: grad * scale)

    reference = with_lora(tiny_llama(dtype=torch.float16).double(), ["v_proj"])
    model = with_lora(tiny_llama(dtype=torch.float16), ["v_proj"])
    model.get_base_model().model.norm.register_forward_hook(weaken)
    found, _, _ = collected(ExampleGradients(model), mixed_batch())
    assert_rows(found, scale * loop_gradients(reference, mixed_batch()), 0.05)


def test_blocks_come_from_the_last_layer_to_the_first_in_coordinates_of_named_parameters():
    model = with_lora(tiny_llama(), ATTENTION)
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    sizes = [p.numel() for name, p in model.named_parameters() if "lora_" in name]
    gradients = ExampleGradients(model)
    assert [w.name for w in gradients.weights] == names
    assert [w.offset for w in gradients.weights] == np.cumsum([0, *sizes[:-1]]).tolist()
    _, _, order = collected(gradients, mixed_batch())
    layers = [int(name.split("layers.")[1].split(".")[0]) for name in order]
    assert layers == sorted(layers, reverse=True)


def test_a_row_does_not_depend_on_its_company():
    gradients = ExampleGradients(with_lora(tiny_llama(dtype=torch.float64), ATTENTION))
    assert not gradients.masks_padding
    together, _, _ = collected(gradients, mixed_batch())
    alone = torch.cat([collected(gradients, [e])[0] for e in mixed_batch()])
    assert_rows(together, alone, 1e-12)
    backwards, _, _ = collected(gradients, mixed_batch()[::-1])
    assert_rows(backwards.flip(0), together, 1e-12)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e200])
def test_a_poisoned_row_leaves_the_others_as_they_are(poison):
    model = with_lora(tiny_llama(dtype=torch.float64, tie_word_embeddings=False), ATTENTION)
    with torch.no_grad():
        model.get_input_embeddings().weight[[0, 200]] = poison  # of the pad token too
    gradients = ExampleGradients(model)
    batch = [e for e in mixed_batch() if 200 not in e.input_ids_S]
    clean, clean_loss, _ = collected(gradients, batch)
    sick = TokenizedExample(9, batch[1].input_ids_S.copy(), batch[1].loss_mask_S)
    sick.input_ids_S[0] = 200
    found, loss, _ = collected(gradients, [batch[0], sick, *batch[2:]])
    others = [0, *range(2, len(batch))]
    assert torch.equal(found[others], clean[others])
    assert torch.equal(loss[others], clean_loss[others])
    if not np.isfinite(poison):
        assert not torch.isfinite(found[1]).any()
        assert not torch.isfinite(loss[1])


def test_the_head_in_pieces_of_any_size_is_the_same(monkeypatch):
    gradients = ExampleGradients(with_lora(tiny_llama(dtype=torch.float64), ATTENTION))
    whole, whole_loss, _ = collected(gradients, mixed_batch())
    monkeypatch.setattr(gradients._head, "rows_of_a_piece", lambda device: 3)
    pieces, loss, _ = collected(gradients, mixed_batch())
    assert_rows(pieces, whole, 1e-12)
    assert torch.allclose(loss, whole_loss, rtol=1e-12)


def test_only_trained_positions_reach_the_head_and_nothing_below_the_lowest_adapter_is_differentiated():
    model = with_lora(tiny_llama(), ["v_proj"])
    gradients = ExampleGradients(model)
    rows, below = [], []
    model.get_output_embeddings().register_forward_hook(lambda _, x, y: rows.append(y.shape[:-1].numel()))
    model.get_input_embeddings().register_forward_hook(lambda _, x, y: below.append(y.requires_grad))
    collected(gradients, mixed_batch())
    assert sum(rows) == sum(e.loss_tokens for e in mixed_batch())
    assert below == [False]
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_a_tracked_head_takes_all_logits_and_says_so(caplog):
    targets = ["q_proj", "lm_head"]
    model = with_lora(tiny_llama(dtype=torch.float64, tie_word_embeddings=False), targets)
    expected = loop_gradients(model, mixed_batch())
    with caplog.at_level(logging.WARNING):
        gradients = ExampleGradients(model)
    assert gradients.head == "whole"
    assert "a tracked weight lies outside its decoder" in caplog.text
    found, _, _ = collected(gradients, mixed_batch())
    assert_rows(found, expected, 1e-12)


def test_a_head_that_looks_beyond_its_position_is_found_out_and_still_exact(caplog):
    model = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    model.get_output_embeddings().register_forward_hook(lambda _, x, y: y - y.mean(1, keepdim=True))
    with caplog.at_level(logging.WARNING):
        gradients = ExampleGradients(model)
    assert gradients.head == "whole"
    assert "are off by" in caplog.text
    batch = [example(0, 20, [(5, 20)]), example(1, 20, [(1, 9)])]  # of one length: that head would see padding
    expected = loop_gradients(model, batch)
    found, _, _ = collected(gradients, batch)
    assert_rows(found, expected, 1e-12)


def test_a_model_that_looks_ahead_gets_a_mask_and_rows_stay_their_own():
    base = tiny_llama(dtype=torch.float64, attn_implementation="eager")
    for layer in base.model.layers:
        layer.self_attn.is_causal = False

        def see_all(module, args, kwargs):
            mask = kwargs["attention_mask"]
            blocked = mask[:, :, -1:, :].expand_as(mask)  # as the last token sees it: all but the padding
            return args, {**kwargs, "attention_mask": blocked}

        layer.self_attn.register_forward_pre_hook(see_all, with_kwargs=True)
    model = with_lora(base, ["v_proj"])
    gradients = ExampleGradients(model)
    assert gradients.masks_padding
    batch = [example(0, 20, [(5, 20)]), example(1, 9, [(1, 9)])]
    found, _, _ = collected(gradients, batch)
    alone = torch.cat([collected(gradients, [e])[0] for e in batch])
    assert_rows(found, alone, 1e-6)  # its softmax is in float32


@pytest.mark.parametrize(("share", "shows"), [(2.0**-22, False), (2.0**-12, True)])
def test_padding_shows_where_it_changes_more_than_the_rounding_of_logits(share, shows):
    """As by chance in a mixture of experts, where tokens that are routed together are multiplied together."""
    base = tiny_llama()

    def by_company(_, inputs, output):
        return output * (1 + share * (inputs[0][-1, -1] > 0).sum())

    base.get_output_embeddings().register_forward_hook(by_company)
    first, other = (base(torch.tensor([[1, 2, 3, end]])).logits[:, :3] for end in (0, 9))
    assert not torch.equal(first, other)
    gradients = ExampleGradients(with_lora(base, ATTENTION))
    assert gradients.masks_padding == shows
    gradients.close()


@pytest.mark.parametrize("merged", [True, False])
def test_a_layer_that_is_called_twice_is_handed_on_once_with_the_sum(merged, monkeypatch):
    if not merged:
        by_hooks(monkeypatch)
    base = tiny_llama(dtype=torch.float64)
    base.model.layers[1] = base.model.layers[0]
    model = with_lora(base, ATTENTION)
    expected = loop_gradients(model, mixed_batch())
    found, _, order = collected(ExampleGradients(model), mixed_batch())
    assert len(order) == 8
    assert_rows(found, expected, 1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_factors_multiply_to_the_gradient_whether_a_layer_is_called_once_or_twice(shared):
    base = tiny_llama(dtype=torch.float64)
    if shared:
        base.model.layers[1] = base.model.layers[0]
    model = with_lora(base, ATTENTION)
    expected, gradients = loop_gradients(model, mixed_batch()), ExampleGradients(model, merging=False)
    found = torch.zeros(len(expected), gradients.parameters, dtype=torch.float64)

    def consume_factors(weight, rows, grad_BSo, x_BSi):
        block = torch.einsum("bso,bsi->boi", grad_BSo, x_BSi).flatten(1)
        found[rows, weight.offset : weight.offset + weight.size] += block

    gradients.run(make_batch(mixed_batch(), "cpu"), lambda *_: pytest.fail("a gradient was formed"), consume_factors)
    assert_rows(found, expected, 1e-12)


def test_a_layer_that_the_loss_does_not_need_gets_zeros():
    model = with_lora(tiny_llama(dtype=torch.float64), ["v_proj"])
    spare = torch.nn.Linear(3, 2, bias=False)
    weights = track([*((w.name, w.module) for w in lora_weights(model)), ("spare", spare)])
    expected = loop_gradients(model, mixed_batch())
    found, _, order = collected(ExampleGradients(model, weights), mixed_batch())
    assert order[-1] == "spare"
    assert torch.equal(found[:, -6:], torch.zeros(6, 6).double())
    assert_rows(found[:, :-6], expected, 1e-12)


def test_any_linear_layer_can_be_tracked():
    model = tiny_llama(dtype=torch.float64)
    layer = model.model.layers[0].mlp.up_proj
    found, _, _ = collected(ExampleGradients(model, track([("up", layer)])), mixed_batch())
    for e, row in zip(mixed_batch(), found, strict=True):
        layer.weight.requires_grad_()
        ids = torch.from_numpy(e.input_ids_S).long()
        at = torch.from_numpy(np.flatnonzero(e.loss_mask_S))
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, at - 1], ids[at])
        (grad,) = torch.autograd.grad(loss, layer.weight)
        assert torch.allclose(grad.reshape(-1), row, rtol=1e-9, atol=1e-14)
        layer.weight.requires_grad_(False)


def test_a_layer_that_loses_the_batch_is_refused_by_name_and_the_next_batch_is_not_harmed():
    changes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = with_lora(family("qwen2_moe", **changes, shared_expert_intermediate_size=16), ["shared_expert_gate"])
    gradients = ExampleGradients(model)
    with pytest.raises(
        ConfigError, match=r"model\.lora\.targets: .*shared_expert_gate\.lora_A.*not as \[batch, tokens"
    ):
        collected(gradients, mixed_batch())
    ids = torch.arange(5, 15)[None]
    assert model(input_ids=ids).logits.shape == (1, 10, VOCAB)  # outside of a batch the hooks do nothing


@pytest.mark.parametrize("merged", [True, False])
def test_checkpointing_changes_no_row(merged, monkeypatch):
    if not merged:
        by_hooks(monkeypatch)
    model = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    plain, _, _ = collected(ExampleGradients(model), mixed_batch())
    calls = []
    model.get_submodule("base_model.model.model.layers.0.mlp").register_forward_hook(lambda *_: calls.append(1))
    gradients = ExampleGradients(model, checkpointing=True)
    calls.clear()
    found, _, _ = collected(gradients, mixed_batch())
    assert len(calls) == 2, "the layer was not run again"
    assert torch.equal(found, plain)
    with pytest.raises(ConfigError, match="has no layers that transformers can checkpoint"):
        ExampleGradients(torch.nn.Linear(2, 2), [], checkpointing=True)


@pytest.mark.parametrize("adapted", [True, False])
def test_own_weights_of_linear_layers_are_taken_with_and_without_an_adapter(adapted):
    model = tiny_llama(dtype=torch.float64)
    if adapted:
        model = with_lora(model, ["q_proj"])
    weights = linear_weights(model, ["q_proj", "layers.1.mlp.down_proj"])
    assert len(weights) == 3
    found, _, _ = collected(ExampleGradients(model, weights), mixed_batch())
    for w in weights:
        w.module.weight.requires_grad_()
    for e, row in zip(mixed_batch(), found, strict=True):
        ids, at = torch.from_numpy(e.input_ids_S).long(), torch.from_numpy(np.flatnonzero(e.loss_mask_S))
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, at - 1], ids[at])
        expected = torch.autograd.grad(loss, [w.module.weight for w in weights])
        assert_rows(row[None], torch.cat([g.reshape(-1) for g in expected])[None], 1e-12)


def test_own_weights_that_are_not_there_or_not_linear_are_refused():
    with pytest.raises(ConfigError, match="features.weights: no linear layer .* is called 'c_attn'"):
        linear_weights(tiny_llama(), ["q_proj", "c_attn"])
    with pytest.raises(ConfigError, match="features.weights: model.norm is a LlamaRMSNorm"):
        linear_weights(tiny_llama(), ["norm"])


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    st.lists(st.tuples(st.integers(2, 40), st.floats(0, 1), st.integers(0, 99)), min_size=1, max_size=6),
)
def test_rows_of_random_shapes_are_those_of_a_loop_in_float64(heads, layers, rank, all_linear, sizes):
    """In float32 to 1e-5, or to what a plain float32 loop loses where a random model is badly conditioned.

    That is 1e-4 at worst: at rank 1 a norm divides by an embedding that is nearly zero.
    """
    shape = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "num_hidden_layers": layers}
    targets = "all-linear" if all_linear else ATTENTION
    batch = [example(seed, n, [(1 + int(share * (n - 2)), n)]) for n, share, seed in sizes]
    exact, single = (with_lora(tiny_llama(dtype=d, **shape), targets, r=rank) for d in (torch.float64, torch.float32))
    expected, plain = loop_gradients(exact, batch), loop_gradients(single, batch).double()
    assert_rows(collected(ExampleGradients(exact), batch)[0], expected, 1e-9)
    found, _, _ = collected(ExampleGradients(single), batch)
    lost = float(((plain - expected).norm(dim=1) / expected.norm(dim=1)).max())
    assert_rows(found, expected, max(1e-5, 8 * lost))


def test_an_adapter_with_more_than_linear_weights_is_refused():
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    with pytest.raises(ConfigError, match="lora_embedding_A.*not the weight of a linear layer"):
        ExampleGradients(model)
    with pytest.raises(ConfigError, match="no LoRA matrices"):
        ExampleGradients(tiny_llama())


def test_only_plain_lora_on_linear_layers_in_full_precision_runs_merged():
    assert len(ExampleGradients(with_lora(tiny_llama(), ATTENTION)).merged) == 8
    assert not ExampleGradients(with_lora(tiny_llama(dtype=torch.bfloat16), ATTENTION)).merged
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    assert not ExampleGradients(with_lora(family("gpt2", **shape), ["c_attn"])).merged  # its layers are transposed
    model = with_lora(tiny_llama(), ATTENTION)
    model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj").register_forward_hook(lambda *_: None)
    assert len(ExampleGradients(model).merged) == 7


def test_after_a_batch_the_model_is_as_it_was():
    model = with_lora(tiny_llama(), ATTENTION)
    ids = torch.arange(5, 15)[None]
    before = model(input_ids=ids).logits
    gradients = ExampleGradients(model)
    collected(gradients, mixed_batch())
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_closing_takes_the_hooks_away():
    model = with_lora(tiny_llama(dtype=torch.bfloat16), ATTENTION)
    gradients = ExampleGradients(model)
    assert any(module._forward_hooks for module in model.modules())
    gradients.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_padding_brings_nothing_new_into_a_row():
    batch = make_batch(mixed_batch(), "cpu")
    for e, ids, attended in zip(mixed_batch(), batch.input_ids_BS, batch.attention_mask_BS, strict=True):
        assert ids[: e.tokens].tolist() == e.input_ids_S.tolist()
        assert set(ids[e.tokens :].tolist()) <= {e.input_ids_S[0]}
        assert attended.tolist() == [1] * e.tokens + [0] * (30 - e.tokens)
    labels = [int(t) for e in mixed_batch() for t in e.input_ids_S[e.loss_mask_S]]
    assert batch.label_n.tolist() == labels
    assert batch.loss_tokens_B.tolist() == [e.loss_tokens for e in mixed_batch()]
    assert batch.input_ids_BS.reshape(-1)[batch.position_n + 1].tolist() == labels
