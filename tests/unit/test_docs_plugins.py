"""docs/plugins.md is run as it is written."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

import influray
from influray.plugins import permit, target_of
from influray.protocols import ConfigError
from influray.registry import check, make
from influray.testing.scorers import GRADIENTS
from tests.unit.test_config import tree

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[number]


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    (tmp_path / "shelf.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shelf", raising=False)
    permit(["shelf:Centred", "shelf:Exploring"])
    return tmp_path


def test_each_class_is_about_twenty_lines():
    for text in re.split(r"\n\n\nclass ", block("python"))[1:]:
        assert len([line for line in text.splitlines() if line.strip()]) <= 22


def test_its_classes_keep_the_laws(shelf):
    exec(compile(block("python", 1), "plugins.md", "exec"), {})


def test_its_config_is_one(shelf):
    given = yaml.safe_load(block("yaml"))
    config = influray.config.parse_config({**tree(), **given})
    assert check("scorers", config.attribution.scorer, config.attribution.options) == {"share": 0.5}
    assert check("selectors", config.selectors[0].method, config.selectors[0].options) == {"drawn": 0.2}


def test_its_messages_are_those_that_are_printed(shelf):
    for message, options in zip(block("text").splitlines(), ({"share": 2}, {"shre": 1}), strict=True):
        with pytest.raises(ConfigError) as caught:
            make("scorers", "shelf:Centred", options, GRADIENTS)
        assert str(caught.value) == message


def test_its_call_from_python_selects(shelf):
    (call,) = re.findall(r"From Python: `(.*?)`", PAGE)
    names = {"influray": influray, "scores": np.random.default_rng(0).standard_normal((300, 2)), "tasks": ["a", "b"]}
    assert len(eval(call, names).rows) == 100


def test_its_entry_points_are_found(shelf):
    from tests.unit.test_plugins import install

    groups = tomllib.loads(block("toml"))["project"]["entry-points"]
    install(shelf, groups)
    for group, points in groups.items():
        for name, target in points.items():
            assert target_of(group.removeprefix("influray."), name) == target
            assert make(group.removeprefix("influray."), name, {}, *([GRADIENTS] if "scorers" in group else []))
