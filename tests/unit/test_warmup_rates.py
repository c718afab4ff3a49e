"""Warmups of so few steps that the learning rate, which rises from 0, leaves checkpoints where they began."""

from __future__ import annotations

import logging

import pytest

from influray.config import parse_config
from influray.protocols import ConfigError
from influray.steps.train import require_moved


def config(weights="learning_rate"):
    return parse_config(
        {
            "run_dir": "run",
            "model": {"base": "base"},
            "data": {"pool": "pool", "targets": {"a": "a.jsonl"}},
            "warmup": {"batch_size": 128},
            "attribution": {"weights": weights},
            "selectors": [{"name": "bids", "method": "bids", "budget": 0.1}],
        }
    )


def manifest(*rates):
    return {"mean_learning_rates": list(rates), "checkpoints": len(rates), "steps": len(rates)}


def test_a_warmup_that_never_moved_is_refused_before_features_are_made_of_it():
    with pytest.raises(ConfigError, match=r"1 optimizer steps in 1 epochs .* lower warmup\.batch_size \(now 128\)"):
        require_moved(config(), manifest(0.0))


def test_a_checkpoint_that_weighs_nothing_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        require_moved(config(), manifest(0.0, 1e-5))
    assert "checkpoints 1 were trained at 0 and weigh nothing; lower warmup.batch_size (now 128)" in caplog.text


@pytest.mark.parametrize(
    ("weights", "rates"), [("learning_rate", [1e-5, 2e-5]), ("uniform", [0.0, 0.0]), ([1, 2], [0.0, 1e-5])]
)
def test_other_weights_and_rates_pass_in_silence(caplog, weights, rates):
    with caplog.at_level(logging.WARNING):
        require_moved(config(weights), manifest(*rates))
    assert not caplog.text
