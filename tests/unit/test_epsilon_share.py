"""Log, report and plan say where epsilon dominates Adam's denominator, and what changes it."""

from __future__ import annotations

import pytest

from influray.config import parse_config
from influray.features.epsilon_share import epsilon_text, mostly_epsilon, stored_shares
from influray.planning.plan import _epsilon
from influray.report.collect import collect
from influray.report.page import render
from influray.store.artifact import ShardStore, write_manifest
from tests.unit.synthetic_run import build_run, config_tree

SETTINGS = ("warmup.epochs", "features.adam_epsilon_mode", "features.direction: sgd")


@pytest.fixture
def config(tmp_path):
    return parse_config(config_tree(tmp_path))


@pytest.mark.parametrize(("shares", "much"), [([0.1, 0.5], False), ([0.2, 0.87], True)])
def test_a_high_share_is_told_with_its_settings(shares, much, config):
    text = epsilon_text(shares, config)
    assert mostly_epsilon(shares) == much
    assert all(f"{share:.0%}" in text for share in shares)
    assert [setting in text for setting in SETTINGS] == [much] * 3


def test_imported_checkpoints_are_not_told_of_a_warmup(tmp_path):
    imported = parse_config(
        {**config_tree(tmp_path), "warmup": {"checkpoints": [{"adapter": "a", "mean_learning_rate": 1e-4}]}}
    )
    text = epsilon_text([0.9], imported)
    assert "features.adam_epsilon_mode" in text
    assert "warmup" not in text


def test_report_and_plan_say_it_of_whole_datastores_and_of_half_made_ones(tmp_path, config):
    run = build_run(tmp_path / "run", evaluated=False, selections=False)
    assert "epsilon" not in render(collect(run.path))
    write_manifest(run.warmup, {"checkpoints": 2})
    write_manifest(run.features("pool", 1), {"epsilon_share": 0.25})
    assert stored_shares(run, 2) == [0.25]
    assert _epsilon(config, run, "checkpoints", 2) == []
    assert "in 25% of coordinates" in render(collect(run.path))
    ShardStore(run.features("pool", 2)).commit("abc", None, {"epsilon_share": 0.75, "rows": 3})
    assert stored_shares(run, 2) == [0.25, 0.75]
    (advice,) = _epsilon(config, run, "checkpoints", 2)
    assert "in 25%, 75% of coordinates" in advice
    page = render(collect(run.path))
    for setting in SETTINGS:
        assert setting in advice
        assert setting in page


@pytest.mark.parametrize("share", [None, 0.0])
def test_directions_without_epsilon_are_told_nothing_of_it(tmp_path, config, share):
    run = build_run(tmp_path / "run", evaluated=False, selections=False)
    write_manifest(run.features("pool", 1), {"epsilon_share": share})
    assert _epsilon(config, run, "checkpoints", 1) == []
    changed = config.model_copy(update={"features": config.features.model_copy(update={"direction": "sgd"})})
    write_manifest(run.features("pool", 1), {"epsilon_share": 0.9})
    assert _epsilon(config, run, "checkpoints", 1) != []
    assert _epsilon(changed, run, "checkpoints", 1) == []
