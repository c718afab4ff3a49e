"""What the manifest of a datastore says of its shards."""

from __future__ import annotations

import pytest

from influray.steps.featurize import FeatureStore
from influray.store.run_directory import RunDirectory

SHARDS = (("a", 0, 4), ("b", 4, 8))
PLAIN = {
    "dimension": 8,
    "token_budget": 4096,
    "shrunk": False,
    "without": [],
    "step": "fused",
    "epsilon_share": None,
    "bounds": [0, 8],
    "failures": {},
}


@pytest.mark.parametrize(
    ("changes", "reproducible"),
    [
        ({}, True),
        ({"step": "torch"}, False),  # made where triton could not be had
        ({"token_budget": 2048}, False),
        ({"shrunk": True, "token_budget": 2048}, False),
        ({"without": [5]}, False),
    ],
    ids=str,
)
def test_shards_that_were_made_in_two_ways_are_not_called_reproducible(tmp_path, changes, reproducible):
    store = FeatureStore(RunDirectory(tmp_path), "pool", 1, SHARDS, None, {})
    store.store.commit("a", None, PLAIN)
    store.store.commit("b", None, {**PLAIN, **changes})
    assert store.freeze()["byte_reproducible"] is reproducible
