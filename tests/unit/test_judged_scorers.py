"""Every scorer that validation knows by name is given features that carry it, whatever the run's own are."""

from __future__ import annotations

import pytest

from influray.config import parse_config
from influray.scorers.options import expected_stores, make_scorer
from influray.validation.scorers import KNOWN, RANDOM, config_of


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {RANDOM}))
@pytest.mark.parametrize(
    "features",
    [
        {},
        {"featurizer": "ngram", "options": {"n": 1}},
        {"projector": {"name": "sparse_jl", "options": {"nonzeros": 4}}, "blocks": "module"},
    ],
    ids=["gradients", "n-grams", "projector with options"],
)
def test_a_known_scorer_can_be_made_on_its_features(name, features):
    tree = {
        "model": {"base": "m"},
        "data": {"pool": "p", "targets": {"a": "t"}},
        "warmup": {"epochs": 3},
        "features": features,
        "attribution": {"scorer": "length"},
        "selectors": [{"name": "s", "method": "sum", "budget": 1}],
    }
    config = config_of(parse_config(tree), KNOWN[name])
    if name != "length":  # it has no features of its own
        make_scorer(config.attribution.scorer, expected_stores(config), config.attribution.options)
    if name == "shampoo":
        assert (config.features.projector.name, config.features.projector.options) == ("factored", {})
