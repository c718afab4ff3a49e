"""`influray methods`: every name that a config can hold, under what it costs."""

from __future__ import annotations

import itertools

import pytest

from influray.cli import app as cli
from influray.registry import METHODS, SEAMS


def test_every_name_stands_under_what_it_costs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["influray", "methods"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    titles = [
        "Text alone",
        "A forward pass of every row\n",
        "under each warmup",
        "Forward and",
        "Over any",
        "Begin with",
    ]
    starts = [text.index(title) for title in titles]
    assert starts == sorted(starts)
    group = [text[start:end] for start, end in itertools.pairwise(starts)]
    expected = {"bm25": [0], "inner_product": [1, 3], "el2n": [1], "loss_drop": [2], "grand": [3], "bids": [4]}
    for name, places in expected.items():
        assert [place for place, part in enumerate(group) if f" {name} " in part] == places
    assert not [name for table in (*SEAMS.values(), METHODS) for name in table if f" {name} " not in text]
