"""Laws that every scorer of the registry obeys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from influray.plugins import permit
from influray.protocols import ArtifactMismatch, ConfigError
from influray.registry import FEATURIZERS, SCORERS, WARMED, featurizer_reads
from influray.scorers.options import make_scorer
from influray.testing.scorers import CHECKPOINTS, COLUMNS, POOL, SCORER_LAWS, TARGET
from tests.exact_runs import write_exact
from tests.features import made_for

# What a scorer is made for where that is not the default; a new scorer that needs something else has a line here.
STORES: dict[str, dict[str, Any]] = {
    "datainf": {"blocks": "module", "bounds_K": ((0, 6, 12, 18, 24),) * CHECKPOINTS},
    "shampoo": {
        **{"blocks": "module", "bounds_K": ((0, 12, 24),) * CHECKPOINTS, "projector": "factored"},
        "factors_K": (((0, 2, 3), (6, 3, 2), (12, 4, 1), (18, 2, 3)),) * CHECKPOINTS,
    },
    "dsir": {"featurizer": "ngram", "bounds_K": ((0, 24),)},
    "bm25": {"featurizer": "ngram"},
    "el2n": {"featurizer": "loss"},
    "loss_drop": {"featurizer": "checkpoint_loss", "tasks_K": ((), ("sums",), ("reversals",))},
}


@pytest.fixture(scope="session")
def options(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """By name the options without which a scorer does nothing."""
    rng = np.random.default_rng(0)
    targets = list(zip(COLUMNS.ids, COLUMNS.tasks, strict=True))
    ids = [str(row) for row in rng.permutation(len(POOL))[:30].tolist()]
    run = write_exact(tmp_path_factory.mktemp("exact"), ids, targets, rng.normal(size=(30, len(targets))))
    exact = {"exact": str(run.path)}
    return dict.fromkeys(("landmarks", "influence_model", "surrogate"), exact)


@pytest.mark.parametrize("name", sorted(SCORERS))
@pytest.mark.parametrize("law", SCORER_LAWS, ids=lambda law: law.__name__)
def test_it_obeys_the_laws_of_its_seam(name, law, options):
    law(make_scorer(name, made_for(CHECKPOINTS, **STORES.get(name, {})), options.get(name, {})))


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_an_option_that_it_has_not_is_refused(name):
    with pytest.raises(ConfigError, match=r"attribution\.options\.similarty: .* has no such option"):
        make_scorer(name, made_for(CHECKPOINTS, **STORES.get(name, {})), {"similarty": 1})


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_the_table_names_the_featurizers_whose_stores_it_takes_the_cheapest_first(name, options):
    taken = []
    for featurizer in FEATURIZERS:
        reads = featurizer_reads(featurizer)
        checkpoints = CHECKPOINTS if reads in WARMED else 1
        suited = {
            key: value[:checkpoints] if key.endswith("_K") else value
            for key, value in STORES.get(name, {}).items()
            if key != "tasks_K" or reads == "adapters"
        }
        try:
            make_scorer(name, made_for(checkpoints, **suited | {"featurizer": featurizer}), options.get(name, {}))
        except ArtifactMismatch:
            continue
        taken.append(featurizer)
    assert sorted(SCORERS[name].reads) == sorted(taken)
    cost = {"records": 0, "base": 1, "adapters": 2, "checkpoints": 3}
    costs = [cost[featurizer_reads(featurizer)] for featurizer in SCORERS[name].reads]
    assert costs == sorted(costs)


def test_a_plug_in_is_made_like_a_method_of_the_table():
    permit(["influray.scorers.inner_product:InnerProduct"])
    plug_in = make_scorer("influray.scorers.inner_product:InnerProduct", made_for(CHECKPOINTS), {"similarity": "dot"})
    assert np.array_equal(
        plug_in.score(POOL, TARGET, {}),
        make_scorer("inner_product", made_for(CHECKPOINTS), {"similarity": "dot"}).score(POOL, TARGET, {}),
    )
