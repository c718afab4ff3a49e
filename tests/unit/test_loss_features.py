"""Loss features against explicit probabilities in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from influray.features.loss import LossFeaturizer, token_scores
from influray.model import piecewise_head
from influray.protocols import ConfigError
from influray.registry import make
from tests.reference.loop_features import loop_losses
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import family, mixed_batch


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5)])
def test_loss_and_el2n_are_means_over_the_trained_tokens(dtype, tolerance):
    reference = tiny_llama(dtype=torch.float64)
    block = LossFeaturizer(tiny_llama(dtype=dtype)).compute(mixed_batch())
    expected = np.array([loop_losses(reference, e) for e in mixed_batch()])
    np.testing.assert_allclose(block.loss_B, expected[:, 0], rtol=tolerance)
    np.testing.assert_allclose(block.extra["el2n"], expected[:, 1], rtol=tolerance)
    assert block.loss_B.dtype == block.extra["el2n"].dtype == np.float32
    assert block.extra["tokens"].tolist() == [e.tokens for e in mixed_batch()]
    assert block.loss_tokens_B.tolist() == [e.loss_tokens for e in mixed_batch()]
    assert block.feature_BD is None


def test_el2n_keeps_its_digits_where_the_model_is_sure():
    """In float32 the textbook form sqrt(sum p^2 - 2 p_y + 1) has lost most of them at these margins."""
    for margin in (0.0, 5.0, 10.0, 20.0, 40.0):
        logits = torch.zeros(1, 300)
        logits[0, 7] = margin
        _, found = token_scores(logits, torch.tensor([7]))
        rest = 299 * math.exp(-margin)
        other = math.exp(-margin) / (1 + rest)
        expected = math.sqrt((299 * other) ** 2 + 299 * other**2)
        assert found.item() == pytest.approx(expected, rel=1e-5)
    _, wrong = token_scores(logits, torch.tensor([8]))
    assert wrong.item() == pytest.approx(math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "gpt_neox"])
def test_pieces_and_company_do_not_show_in_a_row(name, monkeypatch):
    """The head of gemma2 caps logits and that of cohere scales them: both must happen to the pieces too."""
    model = family(name).double().eval()
    whole = LossFeaturizer(model).compute(mixed_batch())
    monkeypatch.setattr(piecewise_head, "_PIECE_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(piecewise_head, "_FEWEST_ROWS", 3)
    featurizer = LossFeaturizer(model)
    pieces = featurizer.compute(mixed_batch())
    for b, e in enumerate(mixed_batch()):
        alone = featurizer.compute([e])
        for block, at in ((whole, b), (pieces, b), (alone, 0)):
            expected = loop_losses(model, e)
            assert (block.loss_B[at], block.extra["el2n"][at]) == pytest.approx(expected, rel=1e-6)


def test_a_head_that_cannot_be_run_by_itself_is_run_with_its_model(caplog):
    model = tiny_llama(dtype=torch.float64)
    expected = [loop_losses(model, e) for e in mixed_batch()]
    model.get_decoder = lambda: model
    block = LossFeaturizer(model).compute(mixed_batch())
    assert "all logits are made" in caplog.text
    np.testing.assert_allclose(np.stack([block.loss_B, block.extra["el2n"]], 1), expected, rtol=1e-6)


def test_it_has_no_options():
    with pytest.raises(ConfigError, match=r"features\.options\.n: 'loss' has no such option \(it has none\)"):
        make("featurizers", "loss", {"n": 2}, tiny_llama(), "cpu")
