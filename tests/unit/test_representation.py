"""Representation features against a loop over single examples in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influray.features.representation import RepresentationFeaturizer
from influray.protocols import ConfigError
from influray.registry import make
from tests.reference.loop_features import loop_representation
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import example, family, mixed_batch

WEIGHTS = {
    "position_weighted": lambda s, L: s,
    "mean": lambda s, L: 1,
    "last_token": lambda s, L: float(s == L),
}


@pytest.mark.parametrize("pooling", sorted(WEIGHTS))
def test_rows_are_the_pooled_states_of_each_example_alone(pooling):
    model = tiny_llama(dtype=torch.float64)
    block = RepresentationFeaturizer(tiny_llama(), pooling=pooling).compute(mixed_batch())
    expected = np.stack([loop_representation(model, e, WEIGHTS[pooling]).numpy() for e in mixed_batch()])
    norm = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(block.norm_B, norm, rtol=1e-5)
    np.testing.assert_allclose(block.feature_BD, expected / norm[:, None], atol=3e-4)  # half a float16 step under 1
    assert (block.feature_BD.dtype, block.norm_B.dtype) == (np.float16, np.float32)
    assert block.row_B.tolist() == [0, 1, 2, 3, 4, 5]
    assert block.extra["tokens"].tolist() == [e.tokens for e in mixed_batch()]
    assert block.loss_tokens_B.tolist() == [e.loss_tokens for e in mixed_batch()]
    assert not block.failures


def test_under_a_float64_model_only_the_rounding_to_float16_is_left():
    model = tiny_llama(dtype=torch.float64)
    block = RepresentationFeaturizer(model).compute(mixed_batch())
    for b, e in enumerate(mixed_batch()):
        expected = loop_representation(model, e, WEIGHTS["position_weighted"])
        unit = (expected / expected.norm()).numpy()
        assert np.abs(block.feature_BD[b] - unit.astype(np.float16)).max() <= np.spacing(np.float16(0.5))


def test_later_tokens_weigh_more():
    model = tiny_llama(dtype=torch.float64)
    e = mixed_batch()[0]
    weighted, mean, last = (
        RepresentationFeaturizer(model, pooling=p).compute([e]).feature_BD[0].astype(float)
        for p in ("position_weighted", "mean", "last_token")
    )
    assert weighted @ last > mean @ last


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt_neox"])
def test_padding_and_company_do_not_show_in_a_row(name):
    model = family(name).double().eval()
    featurizer = RepresentationFeaturizer(model)
    together = featurizer.compute(mixed_batch())
    turned = featurizer.compute(mixed_batch()[::-1])
    for b, e in enumerate(mixed_batch()):
        alone = featurizer.compute([e])
        np.testing.assert_allclose(alone.norm_B[0], together.norm_B[b], rtol=1e-6)
        for other in (together.feature_BD[b], turned.feature_BD[5 - b]):
            assert np.abs(alone.feature_BD[0].astype(float) - other).max() <= np.spacing(np.float16(0.5))


def test_the_dimension_is_the_models_width_also_where_nothing_is_usable():
    featurizer = RepresentationFeaturizer(tiny_llama())
    assert featurizer.dimension == 32
    assert featurizer.compute([example(3, 5, [])]).feature_BD.shape == (0, 32)


def test_wrong_options_are_named_by_their_key():
    with pytest.raises(ConfigError, match=r"features\.options\.pooling: found 'cls', expected position_weighted, mean"):
        make("featurizers", "representation", {"pooling": "cls"}, tiny_llama(), "cpu")
    with pytest.raises(ConfigError, match=r"features\.options\.poling: .* did you mean 'pooling'\?"):
        make("featurizers", "representation", {"poling": "mean"}, tiny_llama(), "cpu")
