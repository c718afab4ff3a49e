"""The command for an extra fits where influray came from."""

from __future__ import annotations

import json

import pytest

from influray import extras


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'influray[serve]'"),
        (
            {"url": "file:///src/my%20tree", "dir_info": {"editable": True}},
            "pip install -e '/src/my tree[serve]'",
        ),
        ({"url": "file:///src/influray", "dir_info": {}}, "pip install '/src/influray[serve]'"),
        (
            {"url": "file:///w/influray-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'influray[serve] @ file:///w/influray-0.1.0-py3-none-any.whl'",
        ),
    ],
)
def test_the_command_for_an_extra(monkeypatch, origin, command):
    class Installed:
        def read_text(self, name):
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(extras, "distribution", lambda name: Installed())
    assert extras.install_command("serve") == command


def test_a_source_tree_that_is_not_installed_names_the_index(monkeypatch):
    def missing(name):
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", missing)
    assert extras.install_command("hub") == "pip install 'influray[hub]'"
