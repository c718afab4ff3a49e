"""How many padded tokens a batch may have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from influray.features.token_budget import largest_fitting, made_up_batch, resolve_token_budget
from tests.tiny import tiny_llama


def never(batch):
    raise AssertionError("no trial was needed")


def test_what_was_asked_for_is_taken_and_a_cpu_needs_no_trial():
    model = tiny_llama()
    assert resolve_token_budget(700, model, "cpu", 2048, never) == 700
    assert resolve_token_budget("auto", model, "cpu", 512, never) == 4096
    assert resolve_token_budget("auto", model, "cpu", 9000, never) == 9000


@given(st.integers(1, 40), st.integers(0, 6), st.integers(0, 5000))
def test_trials_end_at_the_first_that_does_not_fit(low, doublings, limit):
    high = low * 2**doublings
    tried = []

    def fits(tokens):
        tried.append(tokens)
        return tokens <= limit

    found = largest_fitting(low, high, fits)
    fitting = [low * 2**n for n in range(doublings + 1) if low * 2**n <= limit]
    assert found == (fitting[-1] if fitting else low)
    assert tried == sorted(set(tried))
    assert sum(tokens > limit for tokens in tried) <= 1


@pytest.mark.parametrize(("tokens", "length"), [(1024, 16), (1024, 1000), (1024, 4000), (8, 8)])
def test_a_made_up_batch_has_the_tokens_that_were_asked_for(tokens, length):
    batch = made_up_batch(tokens, length)
    assert {example.tokens for example in batch} == {length}
    assert len({example.row for example in batch}) == len(batch)
    assert all(example.loss_tokens == length - 1 for example in batch)
    assert tokens - length < len(batch) * length <= max(tokens, length)


def test_a_made_up_batch_goes_through_a_featurizer():
    from influray.config import FeaturesConfig
    from influray.features.gradient import GradientFeaturizer
    from influray.runtime.workers import trial
    from tests.unit.test_example_gradients import ATTENTION, with_lora

    settings = FeaturesConfig.model_validate({"projector": {"dimension": 8}})
    model = with_lora(tiny_llama(dtype=torch.float32), ATTENTION)
    featurizer = GradientFeaturizer(model, settings, None, "sgd")
    block = featurizer.compute(made_up_batch(64, 16))
    assert len(block.row_B) + len(block.failures) == 4
    shapes = []
    featurizer._gradients.model.model.layers[0].register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape[:2]))
    assert featurizer.can_pack()
    shapes.clear()
    for packing, tokens in (("auto", 64), ("on", 64), ("off", 64), ("auto", 16)):
        found = trial(featurizer, packing, made_up_batch(tokens, 16))
        assert len(found.row_B) + len(found.failures) == tokens // 16
    assert shapes == [(1, 64), (1, 64), (4, 16), (1, 16)], "a trial is packed where shards may be"
