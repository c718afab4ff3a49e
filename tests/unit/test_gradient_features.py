"""The featurizer: unit rows of the projected direction, and rows that fail without harm to the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influray.config import FeaturesConfig
from influray.features.gradient import GradientFeaturizer, squared_norm
from influray.model.checkpoints import AdamMoments
from influray.model.tracked_weights import lora_weights
from influray.protocols import ArtifactMismatch, ConfigError, TokenizedExample
from influray.registry import resolve
from tests.reference.adam_direction import adam_number
from tests.reference.dense_projection import dense_factored, side
from tests.reference.loop_gradients import loop_gradient
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import ATTENTION, example, mixed_batch, with_lora

P = 1344  # LoRA coordinates of the tiny Llama with r = 3 on q, k, v, o


def config(projector="identity", dimension=P, options=None, **settings):
    section = {"name": projector, "dimension": dimension, "options": options or {}}
    return FeaturesConfig.model_validate({"projector": section, **settings})


def adapted(**changes):
    return with_lora(tiny_llama(**changes), ATTENTION)


def moments_of(model):
    generator = torch.Generator().manual_seed(5)
    first = {w.name: 1e-2 * torch.randn(w.module.weight.shape, generator=generator) for w in lora_weights(model)}
    second = {name: 0.1 * value**2 + 1e-9 for name, value in first.items()}
    return AdamMoments(exp_avg=first, exp_avg_sq=second, beta1=0.9, beta2=0.99, epsilon=1e-8, step=10)


def cosine(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_plain_rows_are_unit_gradients_with_their_norms_and_losses():
    model = adapted()
    reference = [loop_gradient(with_lora(tiny_llama(dtype=torch.float64), ATTENTION), e) for e in mixed_batch()]
    featurizer = GradientFeaturizer(model, config(), None, "sgd")
    assert (featurizer.dimension, featurizer.parameters, featurizer.head) == (P, P, "pieces")
    assert featurizer.epsilon_share is None
    block = featurizer.compute(mixed_batch())
    dtypes = {name: getattr(block, name).dtype for name in block.__dataclass_fields__ if name.endswith(("_B", "_BD"))}
    assert dtypes == {
        "row_B": np.int64,
        "feature_BD": np.float16,
        "norm_B": np.float32,
        "grad_norm_B": np.float32,
        "loss_B": np.float32,
        "loss_tokens_B": np.int32,
    }
    assert not block.failures
    assert block.row_B.tolist() == [0, 1, 2, 3, 4, 5]
    assert block.loss_tokens_B.tolist() == [e.loss_tokens for e in mixed_batch()]
    gradient = np.stack([g.numpy() for g, _ in reference])
    np.testing.assert_allclose(block.loss_B, [value for _, value in reference], rtol=1e-5)
    np.testing.assert_allclose(block.grad_norm_B, np.linalg.norm(gradient, axis=1), rtol=1e-5)
    np.testing.assert_allclose(block.norm_B, block.grad_norm_B, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(block.feature_BD.astype(np.float64), axis=1), 1, atol=1e-3)
    unit = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(block.feature_BD, unit, atol=6e-4 * np.abs(unit).max())


@pytest.mark.parametrize("mode", ["less", "adamw"])
@pytest.mark.parametrize("momentum", [True, False])
def test_adam_rows_are_the_formula_of_every_coordinate(mode, momentum):
    model = adapted()
    moments = moments_of(model)
    names = [w.name for w in lora_weights(model)]
    m = torch.cat([moments.exp_avg[name].reshape(-1) for name in names]).tolist()
    v = torch.cat([moments.exp_avg_sq[name].reshape(-1) for name in names]).tolist()
    reference = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    settings = config(adam_epsilon_mode=mode, adam_momentum=momentum)
    block = GradientFeaturizer(model, settings, moments, "adam").compute(mixed_batch())
    for e, found, norm in zip(mixed_batch(), block.feature_BD, block.norm_B, strict=True):
        gradient = loop_gradient(reference, e)[0].tolist()
        constants = (moments.beta1, moments.beta2, moments.epsilon, mode, momentum)
        expected = [adam_number(g, m_i, v_i, *constants) for g, m_i, v_i in zip(gradient, m, v, strict=True)]
        assert cosine(found, expected) > 1 - 1e-6
        assert norm == pytest.approx(np.linalg.norm(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"layers": 1}, 1),
        ({"layers": 0.3}, 1),
        ({"layers": 1, "gradient_checkpointing": True}, 1),
        ({"layers": 1.0}, 0),
    ],
)
@pytest.mark.parametrize("direction", ["sgd", "adam"])
def test_rows_of_the_last_layers_are_parts_of_whole_ones(settings, first, direction):
    model = adapted()
    moments = moments_of(model)
    kept = torch.cat(
        [torch.full((w.size,), int(w.name.split("layers.")[1][0]) >= first) for w in lora_weights(model)]
    ).tolist()
    names = [w.name for w in lora_weights(model)]
    m, v = (torch.cat([t[name].reshape(-1) for name in names]).tolist() for t in (moments.exp_avg, moments.exp_avg_sq))
    featurizer = GradientFeaturizer(model, config(dimension=sum(kept), **settings), moments, direction)
    assert featurizer.parameters == sum(kept) == (P if first == 0 else P // 2)
    block = featurizer.compute(mixed_batch())
    reference = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    constants = (moments.beta1, moments.beta2, moments.epsilon, "less", True)
    for e, found, norm in zip(mixed_batch(), block.feature_BD, block.grad_norm_B, strict=True):
        gradient = [g for g, k in zip(loop_gradient(reference, e)[0].tolist(), kept, strict=True) if k]
        assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
        if direction == "adam":
            moment = [(m_i, v_i) for m_i, v_i, k in zip(m, v, kept, strict=True) if k]
            gradient = [adam_number(g, *pair, *constants) for g, pair in zip(gradient, moment, strict=True)]
        assert cosine(found, gradient) > 1 - 1e-6


def test_no_backward_runs_below_the_last_layers():
    model, reached = adapted(), []
    featurizer = GradientFeaturizer(model, config(dimension=P // 2, layers=1), None, "sgd")
    for number, layer in enumerate(model.get_base_model().model.layers):
        layer.mlp.register_forward_hook(
            lambda _, __, output, number=number: reached.append((number, output.requires_grad))
        )
    featurizer.compute(mixed_batch())
    assert set(reached) == {(0, False), (1, True)}


def test_weights_outside_the_layers_have_no_last_ones():
    with pytest.raises(ConfigError, match=r"features\.layers: lm_head\.weight lies in none"):
        GradientFeaturizer(
            tiny_llama(tie_word_embeddings=False), config(layers=1, weights=["down_proj", "lm_head"]), None, "sgd"
        )


def test_moments_of_another_adapter_are_refused_for_its_last_layers_too():
    model = adapted()
    moments = moments_of(model)
    moments.exp_avg[f"{lora_weights(model)[0].name}.other"] = torch.zeros(1)
    with pytest.raises(ArtifactMismatch, match="which the adapter has not"):
        GradientFeaturizer(model, config(dimension=P // 2, layers=1), moments, "adam")


def test_sign_rows_have_one_magnitude():
    block = GradientFeaturizer(adapted(), config(), None, "sign").compute(mixed_batch())
    values = np.abs(block.feature_BD[4][block.feature_BD[4] != 0])
    assert len(np.unique(values)) == 1
    assert block.norm_B[4] == pytest.approx(len(values) ** 0.5)


@pytest.mark.parametrize(("name", "options"), [("rademacher", {}), ("sparse_jl", {"nonzeros": 4}), ("hadamard", {})])
def test_inner_products_of_features_estimate_the_cosines_of_gradients(name, options):
    exact = GradientFeaturizer(adapted(), config(), None, "sgd").compute(mixed_batch())
    block = GradientFeaturizer(adapted(), config(name, 2048, options), None, "sgd").compute(mixed_batch())
    expected = exact.feature_BD.astype(np.float64) @ exact.feature_BD.astype(np.float64).T
    found = block.feature_BD.astype(np.float64) @ block.feature_BD.astype(np.float64).T
    np.testing.assert_allclose(found, expected, atol=5 * (2 / 2048) ** 0.5)
    np.testing.assert_allclose(block.norm_B, exact.norm_B, rtol=5 * (0.5 / 2048) ** 0.5)
    np.testing.assert_allclose(block.grad_norm_B, exact.grad_norm_B, rtol=1e-6)
    assert np.abs(expected - np.eye(6)).max() > 0.2, "the rows are not all orthogonal anyway"


def test_projected_rows_are_the_dense_product():
    featurizer = GradientFeaturizer(adapted(), config("rademacher", 256), None, "sgd")
    matrix = resolve("projectors", "rademacher", "-")(256, P, 0, "cpu").matrix(0, P).double()
    reference = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    expected = torch.stack([loop_gradient(reference, e)[0] for e in mixed_batch()]) @ matrix
    block = featurizer.compute(mixed_batch())
    np.testing.assert_allclose(block.norm_B, expected.norm(dim=1), rtol=1e-5)
    assert (cosine(block.feature_BD, expected) > 1 - 1e-6).all()


@pytest.mark.parametrize(("name", "options"), [("rademacher", {}), ("sparse_jl", {"nonzeros": 4})])
def test_with_blocks_each_lora_pair_is_projected_to_a_part_of_its_own(name, options):
    settings = config(name, 256, options, blocks="module")  # two layers of q, k, v, o: eight modules
    featurizer = GradientFeaturizer(adapted(), settings, None, "sgd")
    assert featurizer.bounds == tuple(range(0, 257, 32))
    projector = resolve("projectors", name, "-")(32, P, 0, "cpu", **options)
    reference = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    gradient_BP = torch.stack([loop_gradient(reference, e)[0] for e in mixed_batch()])
    weights = lora_weights(adapted())
    block = featurizer.compute(mixed_batch())
    plain_BD = block.feature_BD.astype(np.float64) * block.norm_B[:, None]
    for module in range(8):
        expected = torch.zeros(6, 32, dtype=torch.float64)
        for weight in weights[2 * module : 2 * module + 2]:
            here = slice(weight.offset, weight.offset + weight.size)
            projector.add_slice(expected, gradient_BP[:, here], weight.offset)
        part = plain_BD[:, 32 * module : 32 * module + 32]
        np.testing.assert_allclose(part, expected, atol=1e-3 * float(block.norm_B.max()))


def test_blocks_of_unequal_size_are_refused():
    with pytest.raises(ConfigError, match=r"features\.projector\.dimension: 100 .* 8 modules.* take 96 or 104"):
        GradientFeaturizer(adapted(), config("rademacher", 100, blocks="module"), None, "sgd")
    with pytest.raises(ConfigError, match=r"features\.projector\.dimension: 8 numbers .* leave a weight of them none"):
        GradientFeaturizer(adapted(), config("factored", 8, blocks="module"), None, "sgd")
    with pytest.raises(
        ConfigError, match=r"columns: found 8; its square must be at most .* = 50 \(of features\.blocks"
    ):
        GradientFeaturizer(adapted(), config("factored", 800, {"columns": 8}, blocks="module"), None, "sgd")


@pytest.mark.parametrize(("dimension", "options"), [(800, {"columns": 4}), (800, {}), (8 * 2 * 4096, {})])
def test_with_blocks_each_weight_is_a_matrix_of_its_own_factored(dimension, options):
    featurizer = GradientFeaturizer(adapted(), config("factored", dimension, options, blocks="module"), None, "sgd")
    assert featurizer.bounds == tuple(range(0, dimension + 1, dimension // 8))
    weights, share = lora_weights(adapted()), dimension // 16
    assert [first for first, _, _ in featurizer.factors] == list(range(0, dimension, share))
    reference = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    gradient_BP = torch.stack([loop_gradient(reference, e)[0] for e in mixed_batch()]).numpy()
    block = featurizer.compute(mixed_batch())
    plain_BD = block.feature_BD.astype(np.float64) * block.norm_B[:, None]
    used_D = np.zeros(dimension, bool)
    for weight, (first, p, q) in zip(weights, featurizer.factors, strict=True):
        outputs, inputs = weight.module.weight.shape
        columns = options.get("columns") or max(k for k in range(1, 65) if min(outputs, k) * min(inputs, k) <= share)
        assert (p, q) == (min(outputs, columns), min(inputs, columns))
        sides = (side(0, weight.offset, width, columns, which) for which, width in ((1, outputs), (0, inputs)))
        here = slice(weight.offset, weight.offset + weight.size)
        part = plain_BD[:, first : first + p * q]
        np.testing.assert_allclose(part, gradient_BP[:, here] @ np.kron(*sides), atol=1e-3 * float(block.norm_B.max()))
        used_D[first : first + p * q] = True
    assert not plain_BD[:, ~used_D].any()
    if dimension > 800:  # room for every weight whole: signs alone are put on, and nothing is lost
        np.testing.assert_allclose(block.norm_B, np.linalg.norm(gradient_BP, axis=1), rtol=1e-3)


@pytest.mark.parametrize("projector", ["sparse_jl", "factored"])
def test_with_blocks_a_layer_whose_own_weight_is_taken_is_a_module(projector):
    settings = config(projector, 256, weights=("down_proj", "up_proj"), blocks="module")
    featurizer = GradientFeaturizer(tiny_llama(), settings, None, "sgd")
    assert featurizer.bounds == (0, 64, 128, 192, 256), "two of each of two layers"
    assert [first for first, _, _ in featurizer.factors] == ([0, 64, 128, 192] if projector == "factored" else [])


@pytest.mark.parametrize("columns", [2, 20])
def test_factored_rows_are_those_of_the_gradient_that_is_not_formed(columns):
    featurizer = GradientFeaturizer(adapted(), config("factored", 400, {"columns": columns}), None, "sgd")
    shapes = [(w.offset, *w.module.weight.shape) for w in lora_weights(adapted())]
    matrix = dense_factored(shapes, 400, 0, columns)
    reference = with_lora(tiny_llama(dtype=torch.float64), ATTENTION)
    exact = torch.stack([loop_gradient(reference, e)[0] for e in mixed_batch()])
    block = featurizer.compute(mixed_batch())
    assert not block.failures
    expected = exact.numpy() @ matrix
    np.testing.assert_allclose(block.norm_B, np.linalg.norm(expected, axis=1), rtol=1e-4)
    np.testing.assert_allclose(block.grad_norm_B, exact.norm(dim=1).numpy(), rtol=1e-4)
    assert (cosine(block.feature_BD, expected) > 1 - 1e-6).all()


@pytest.mark.parametrize(("outputs", "inputs"), [(3, 4), (40, 50)])
def test_the_norm_of_a_product_is_that_of_its_entries(outputs, inputs):
    generator = torch.Generator().manual_seed(0)
    grad_BSo = torch.randn(4, 6, outputs, generator=generator, dtype=torch.float64)
    x_BSi = torch.randn(4, 6, inputs, generator=generator, dtype=torch.float64)
    expected = [
        float(sum(torch.outer(g, x) for g, x in zip(gs, xs, strict=True)).norm() ** 2)
        for gs, xs in zip(grad_BSo, x_BSi, strict=True)
    ]
    np.testing.assert_allclose(squared_norm(grad_BSo, x_BSi).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("direction", ["adam", "sign"])
def test_factored_takes_the_plain_gradient_only(direction):
    model = adapted()
    with pytest.raises(ConfigError, match=rf"features\.direction: '{direction}' .* 'factored' never forms one"):
        GradientFeaturizer(model, config("factored", 64), moments_of(model), direction)


def test_the_same_batch_gives_the_same_bytes():
    blocks = []
    for _ in range(2):
        featurizer = GradientFeaturizer(adapted(), config("rademacher", 64), None, "sgd")
        blocks += [featurizer.compute(mixed_batch()) for _ in range(2)]
    for block in blocks[1:]:
        for name in ("feature_BD", "norm_B", "grad_norm_B", "loss_B"):
            assert np.array_equal(getattr(block, name), getattr(blocks[0], name))


def test_a_row_does_not_depend_on_its_company():
    featurizer = GradientFeaturizer(adapted(), config("rademacher", 64), None, "sgd")
    together = featurizer.compute(mixed_batch())
    for b, e in enumerate(mixed_batch()):
        alone = featurizer.compute([e])
        assert cosine(alone.feature_BD[0], together.feature_BD[b]) > 1 - 1e-6
        assert alone.norm_B[0] == pytest.approx(together.norm_B[b], rel=1e-4)


@pytest.mark.parametrize("name", ["rademacher", "sparse_jl", "hadamard", "factored"])
def test_a_row_that_fails_is_named_and_the_others_keep_their_bits(name):
    model = adapted(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[200] = torch.nan
    featurizer = GradientFeaturizer(model, config(name, 64), None, "sgd")
    batch = [e for e in mixed_batch() if 200 not in e.input_ids_S]
    clean = featurizer.compute(batch)
    sick = TokenizedExample(77, batch[1].input_ids_S.copy(), batch[1].loss_mask_S)
    sick.input_ids_S[1] = 200
    untrained = TokenizedExample(78, batch[2].input_ids_S, np.zeros_like(batch[2].loss_mask_S))
    block = featurizer.compute([batch[0], sick, untrained, *batch[2:]])
    assert block.failures == {77: "non-finite loss", 78: "no trained token"}
    others = [0, *range(2, len(batch))]
    assert np.array_equal(block.row_B, clean.row_B[others])
    assert np.array_equal(block.feature_BD, clean.feature_BD[others])
    assert np.array_equal(block.norm_B, clean.norm_B[others])


def test_a_gradient_that_overflows_under_a_finite_loss_fails_its_row_alone():
    model = adapted()
    failing = example(5, 8, [(4, 8)])
    featurizer = GradientFeaturizer(model, config(), None, "sgd")
    run = featurizer._gradients.run

    def overflowing(batch, consume):
        def change(weight, block):
            block[1] = torch.inf
            consume(weight, block)

        return run(batch, change)

    featurizer._gradients.run = overflowing
    block = featurizer.compute([mixed_batch()[0], failing, mixed_batch()[2]])
    assert block.failures == {5: "non-finite gradient"}
    assert block.row_B.tolist() == [0, 2]
    assert np.isfinite(block.feature_BD).all()


def test_a_zero_gradient_has_no_direction():
    model = adapted()
    with torch.no_grad():
        for w in lora_weights(model):
            w.module.weight.zero_()
    block = GradientFeaturizer(model, config("rademacher", 64), None, "sgd").compute(mixed_batch())
    assert block.failures == dict.fromkeys(range(6), "zero gradient")
    assert block.feature_BD.shape == (0, 64)
    assert block.feature_BD.dtype == np.float16


def test_a_batch_of_nothing_usable_is_an_empty_block():
    block = GradientFeaturizer(adapted(), config("rademacher", 64), None, "sgd").compute([example(3, 5, [])])
    assert block.failures == {3: "no trained token"}
    assert (len(block.row_B), block.feature_BD.shape) == (0, (0, 64))


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_tiny_and_huge_gradients_keep_their_direction_in_float16(scale):
    """LESS casts to float16 before the projection, where gradients of 1e-8 vanish; here only unit rows are cast."""

    def scaled(model):
        def times(_, inputs, output):
            if output.requires_grad:
                output.register_hook(lambda grad: grad * scale)

        model.get_base_model().model.norm.register_forward_hook(times)
        return model

    plain = GradientFeaturizer(adapted(), config("rademacher", 256), None, "sgd").compute(mixed_batch())
    block = GradientFeaturizer(scaled(adapted()), config("rademacher", 256), None, "sgd").compute(mixed_batch())
    assert (cosine(block.feature_BD, plain.feature_BD) > 1 - 1e-5).all()
    np.testing.assert_allclose(block.norm_B, plain.norm_B * scale, rtol=1e-3)


def test_a_bfloat16_base_gives_nearly_the_same_features():
    exact = GradientFeaturizer(adapted(), config(), None, "sgd").compute(mixed_batch())
    half = GradientFeaturizer(adapted(dtype=torch.bfloat16), config(), None, "sgd").compute(mixed_batch())
    assert (cosine(exact.feature_BD, half.feature_BD) > 0.99).all()


def test_a_float64_base_gives_the_gradients_of_the_loop_in_float64():
    featurizer = GradientFeaturizer(adapted(dtype=torch.float64), config(), None, "sgd")
    for one in mixed_batch():
        expected = loop_gradient(with_lora(tiny_llama(dtype=torch.float64), ATTENTION), one)[0].numpy()
        _, feature, square = featurizer.projected([one])
        assert np.abs(feature[0] - expected).max() <= 1e-6 * np.abs(expected).max()
        assert square[0] == pytest.approx(float(expected @ expected), rel=1e-6)


def test_the_share_of_epsilon_is_reported():
    model = adapted()
    moments = moments_of(model)
    share = GradientFeaturizer(model, config(), moments, "adam").epsilon_share
    second = torch.cat([v.reshape(-1) for v in moments.exp_avg_sq.values()])
    assert share == pytest.approx(float((second * 0.99 < 1e-8).double().mean()))
    assert 0 < share < 1


def test_wrong_moments_and_projectors_are_refused():
    model = adapted()
    with pytest.raises(ArtifactMismatch, match="needs the optimizer's moments"):
        GradientFeaturizer(model, config(), None, "adam")
    with pytest.raises(ConfigError, match=r"features\.projector\.dimension: 10, .* all 1344 coordinates"):
        GradientFeaturizer(model, config(dimension=10), None, "sgd")
    with pytest.raises(ConfigError, match=r"features\.projector\.name: no projector is called 'rademachr'"):
        GradientFeaturizer(model, config("rademachr"), None, "sgd")
    with pytest.raises(ConfigError, match=r"features\.projector\.options\.colour"):
        GradientFeaturizer(model, config("rademacher", options={"colour": 1}), None, "sgd")


def test_own_weights_have_plain_directions_and_adam_only_with_their_moments():
    model = adapted()
    own = config("sparse_jl", 64, weights=["q_proj"])
    featurizer = GradientFeaturizer(model, own, None, "sgd")
    assert featurizer.parameters == 2 * 32 * 32
    assert featurizer.compute(mixed_batch()).feature_BD.shape == (6, 64)
    featurizer.close()
    with pytest.raises(ArtifactMismatch, match=r"no exp_avg of .*q_proj\.base_layer\.weight"):
        GradientFeaturizer(model, own, moments_of(model), "adam")


@pytest.mark.parametrize("tokens", [2, 32_768])
def test_one_token_and_very_long_examples_give_a_finite_row_of_their_own(tokens):
    narrow = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    base = tiny_llama(num_hidden_layers=1, max_position_embeddings=32_768, **narrow)
    model = with_lora(base, ["v_proj"], r=1)
    featurizer = GradientFeaturizer(model, config("sparse_jl", 64), None, "sgd")
    block = featurizer.compute([example(0, tokens, [(tokens - 1, tokens)])])
    assert block.failures == {}
    assert np.isfinite(block.feature_BD).all()
    assert np.linalg.norm(block.feature_BD.astype(np.float64)) == pytest.approx(1, abs=1e-3)


def test_a_featurizer_that_is_refused_or_closed_leaves_no_hooks():
    model = adapted(dtype=torch.bfloat16)  # in float32 its layers run merged, without hooks
    with pytest.raises(ConfigError):
        GradientFeaturizer(model, config("rademacher", options={"colour": 1}), None, "sgd")
    assert not any(module._forward_hooks for module in model.modules())
    featurizer = GradientFeaturizer(model, config(), None, "sgd")
    assert any(module._forward_hooks for module in model.modules())
    featurizer.close()
    assert not any(module._forward_hooks for module in model.modules())
