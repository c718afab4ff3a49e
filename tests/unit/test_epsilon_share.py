"""The log says where epsilon dominates Adam's denominator, and what changes it."""

import logging

import pytest

from influray.steps.featurize import _tell_epsilon


@pytest.mark.parametrize(("shares", "level"), [([], None), ([0.1, 0.5], logging.INFO), ([0.2, 0.87], logging.WARNING)])
def test_a_high_share_is_a_warning_with_its_settings(shares, level, caplog):
    caplog.set_level(logging.INFO)
    _tell_epsilon(shares)
    assert [one.levelno for one in caplog.records] == ([] if level is None else [level])
    assert all(f"{share:.0%}" in caplog.text for share in shares)
    for setting in ("warmup.epochs", "features.adam_epsilon_mode", "features.direction: sgd"):
        assert (setting in caplog.text) == (level == logging.WARNING)


def test_imported_checkpoints_are_not_told_of_a_warmup(caplog):
    _tell_epsilon([0.9], imported=True)
    assert "features.adam_epsilon_mode" in caplog.text
    assert "warmup" not in caplog.text
