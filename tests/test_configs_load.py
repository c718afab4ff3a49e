"""Every shipped config loads, names only what exists, and survives being written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from influray.config import dump_config, load_config, parse_config
from influray.protocols import ConfigError
from influray.steps.checks_of_config import names
from influray.steps.subject import Subject
from influray.store.run_directory import RunDirectory

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_shipped_config_loads_and_repeats(path: Path, tmp_path: Path):
    config = load_config(path)
    names(Subject(config, RunDirectory(tmp_path), ()))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


def test_there_are_configs():
    assert {"bids.yaml", "less.yaml", "demo.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        (
            {"method": "group"},
            r"selectors\.0\.method: 'group' compares the feature vectors.*'ngram' makes none; take grad",
        ),
        (
            {"method": "bids", "constraints": {"near_duplicates": 0.9}},
            r"selectors\.0\.constraints\.near_duplicates compares",
        ),
    ],
)
def test_what_compares_rows_is_refused_where_there_is_nothing_to_compare(selector: dict, said: str, tmp_path: Path):
    tree = {
        "model": {"base": "m"},
        "data": {"pool": "p", "targets": {"a": "t"}},
        "features": {"featurizer": "ngram"},
        "attribution": {"scorer": "bm25"},
        "selectors": [{"name": "s", "budget": 1, **selector}],
    }
    with pytest.raises(ConfigError, match=said):
        names(Subject(parse_config(tree), RunDirectory(tmp_path), ()))
    tree["features"], tree["attribution"] = {"featurizer": "representation"}, {}
    names(Subject(parse_config(tree), RunDirectory(tmp_path), ()))
