"""Recipes of a pilot: which are tried for a config, what they change, and how their results are shown."""

from __future__ import annotations

from typing import Any

import pytest

from influray.config import parse_config
from influray.planning.recipes import FULL, Recipe, chosen, parse, usual, whole
from influray.protocols import ConfigError
from influray.report.pilot import pilot_figures, pilot_notes, pilot_tables


def config(**changes: Any):
    tree = {
        "model": {"base": "some/model"},
        "data": {"pool": "pool.jsonl", "targets": {"sums": "sums.jsonl"}},
        "warmup": {"epochs": 4, "fraction": 0.05, "learning_rate": 1e-4},
        "features": {"projector": {"dimension": 4096, "seed": 7}, "store": "int8"},
        "selectors": [{"name": "bids", "method": "bids", "budget": 0.05}],
    }
    return parse_config({**tree, **changes})


def by_name(given) -> dict[str, Recipe]:
    return {one.name: one for one in usual(given)}


def test_every_usual_recipe_is_a_config_that_differs_where_it_says():
    given = config()
    found = {name: one.of(given) for name, one in by_name(given).items()}
    assert next(iter(found)) == FULL
    assert found[FULL] == given
    assert found["one checkpoint"].warmup == given.warmup.model_copy(update={"epochs": 1})
    assert found["other seeds"].features.projector.seed == 8
    assert found["other seeds"].warmup.seed == 1
    half = found["half the layers"]
    assert half == given.model_copy(update={"features": given.features.model_copy(update={"layers": 0.5})})
    both = found["one checkpoint + half the layers"]
    assert (both.features, both.warmup) == (half.features, found["one checkpoint"].warmup)
    assert found["representation"].features.featurizer == "representation"
    assert found["bm25"].attribution.scorer == "bm25"
    assert [found[f"cascade {share}"].cascade.share for share in ("50%", "25%")] == [0.5, 0.25]
    both = found["one checkpoint + cascade 25%"]
    assert (both.warmup, both.cascade) == (found["one checkpoint"].warmup, found["cascade 25%"].cascade)
    cheap = found["cascade 25% by gradients"].cascade
    assert (cheap.features.featurizer, cheap.features.store, cheap.features.projector.dimension) == (
        *("gradient", "int8"),
        1024,
    )
    assert (cheap.warmup.epochs, cheap.warmup.fraction, cheap.warmup.learning_rate) == (1, 0.05, 1e-4)
    assert all(one.selectors == given.selectors for one in found.values())


def test_recipes_that_a_config_follows_already_are_left_out():
    forward = config(features={"featurizer": "representation"})
    assert list(by_name(forward)) == [FULL, "bm25"]
    text = config(features={"featurizer": "ngram"}, attribution={"scorer": "bm25"})
    assert list(by_name(text)) == [FULL]
    single = config(warmup={"epochs": 1})
    fewer = {"one checkpoint", "cascade 25% by gradients", "one checkpoint + cascade 25%"}
    assert not fewer & set(by_name(single))
    lower = config(features={"layers": 2})
    assert not {"half the layers", "one checkpoint + half the layers"} & set(by_name(lower))
    limits = {"near_duplicates": 0.99}  # compares vectors, and n-grams make none
    apart = config(selectors=[{"name": "bids", "method": "bids", "budget": 0.05, "constraints": limits}])
    assert "bm25" not in by_name(apart)


def test_of_imported_checkpoints_the_last_stays():
    checkpoints = [{"adapter": f"step-{n}", "mean_learning_rate": 1.0 / n} for n in (1, 2, 3)]
    given = config(warmup={"checkpoints": checkpoints}, attribution={"weights": [0.5, 0.3, 0.2]})
    found = by_name(given)["one checkpoint"].of(given)
    assert [one.adapter for one in found.warmup.checkpoints] == ["step-3"]
    assert found.attribution.weights == "uniform"
    assert "warmup.seed" not in by_name(given)["other seeds"].settings


def test_the_full_recipe_has_no_cascade():
    given = config(cascade={"share": 0.1})
    assert whole(given).cascade is None
    assert whole(given) == config()


def test_recipes_are_read_from_the_command_line():
    found = parse(["narrow model.lora.r=4 'attribution.options={similarity: dot}'"])
    assert found == [Recipe("narrow", {"model.lora.r": 4, "attribution.options": {"similarity": "dot"}})]
    every = [Recipe(FULL), *found]
    assert chosen(every, []) == every
    assert chosen(every, ["narrow"]) == every
    for wrong in ("", "alone", "x =3", "x 'features.direction=sgd"):
        with pytest.raises(ConfigError, match="--recipe|--set"):
            parse([wrong])
    with pytest.raises(ConfigError, match="--recipe narrow: .*unknown key"):
        Recipe("narrow", {"model.lora.rank": 4}).of(config())
    with pytest.raises(ConfigError, match="--only: no recipe is called 'narow'.*narrow"):
        chosen(every, ["narow"])
    with pytest.raises(ConfigError, match="given twice"):
        chosen([*every, *found], [])


def planted(**changes: Any) -> dict[str, Any]:
    def line(name: str, seconds: float | None, merit: float, **more: Any) -> dict[str, Any]:
        kept = {"correlation": None if "cascade" in name else 0.5, "overlap": merit / 2, "merit": merit}
        return {"name": name, "settings": {}, "worker_seconds": seconds, **kept, **more}

    recipes = [line("full", 7200.0, 1.0), line("cascade 50%", 3600.0, 0.95), line("bm25", 72.0, -0.25)]
    facts = {"rows": 1000, "pool": 20000, "selector": "bids", "least": 0.9, "cheapest": "cascade 50%"}
    return {"experiment": "pilot", "recipes": recipes, **facts, **changes}


def test_results_are_shown_cheapest_first_with_the_marked_one():
    found = planted()
    table = pilot_tables("pilot", found)[0]
    assert table.title == "Recipes on 1,000 of 20,000 rows, bids"
    assert [row[:3] for row in table.rows] == [
        ("bm25", "0.02", "1.0%"),
        ("cascade 50% *", "1", "50.0%"),
        ("full", "2", "100.0%"),
    ]
    assert table.rows[1][3] == "\u2013"  # what did not pass has no scores
    assert "cascade 50%: the cheapest that keeps 90.0%" in pilot_notes(found)[1]
    assert len(pilot_figures(found)) == 1


def test_without_a_price_or_a_recipe_that_keeps_enough_that_is_said():
    found = planted(cheapest=None)
    for one in found["recipes"]:
        one["worker_seconds"] = None
    assert pilot_figures(found) == []
    assert {row[1] for row in pilot_tables("pilot", found)[0].rows} == {"\u2013"}
    assert "No cheaper recipe keeps 90.0%" in pilot_notes(found)[1]


def test_losses_stand_beside_those_of_random_rows():
    found = planted()
    for n, one in enumerate(found["recipes"]):
        less = {"value": 0.01 * n, "interval": [0.01 * n - 0.02, 0.01 * n + 0.02] if n else None}
        one |= {"loss": 0.5 + 0.01 * n, "loss_less_full": less}
    drawn = {"loss": 0.6, "loss_less_full": {"value": 0.1, "interval": None}}
    found |= {"random": drawn, "tuning_seeds": [0], "records": "target"}
    rows = pilot_tables("pilot", found)[1].rows
    assert rows == (
        ("bm25", "0.520", "+0.020 [0.000, 0.040]"),
        ("cascade 50%", "0.510", "+0.010 [\u22120.010, 0.030]"),
        ("full", "0.500", ""),
        ("random rows", "0.600", "+0.100"),
    )
    assert "targets, which the scores have seen" in pilot_notes(found)[-1]
