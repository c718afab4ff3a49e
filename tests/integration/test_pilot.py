"""`influray pilot` on a tiny world: recipes on a sample choose as runs do, cost as plan says, and share what they can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import influray
from influray import pipeline
from influray.cli import main
from influray.config import load_config
from influray.data.catalogue import Catalogue
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.validation import Validation
from influray.store.artifact import hash_file, read_sealed
from tests.reference import agreement
from tests.tiny import write_tested_world

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]

BUDGET = 0.25
CASCADE = {"share": 0.5, "features": {"featurizer": "representation", "rows_per_shard": 8}}
SAME = "same features.rows_per_shard=6"  # other shards, the same rows


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_tested_world(tmp_path_factory.mktemp("pilots"), 48)


def tree(world: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    loop = {"learning_rate": 1e-2, "batch_size": 8, "device_batch_size": 8, "warmup_ratio": 0.0}
    targets = {t: {"files": f"{t}.jsonl", "test": f"{t}-test.jsonl"} for t in ("sums", "reversals")}
    return {
        "run_dir": str(run_dir),
        "model": {
            "base": str(world / "model"),
            "lora": {"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        },
        "data": {"root": str(world), "pool": "pool.jsonl", "max_tokens": 128, "targets": targets},
        "warmup": {"fraction": 0.5, "epochs": 2, **loop},
        "features": {"projector": {"name": "rademacher", "dimension": 32}, "rows_per_shard": 12},
        "selectors": [
            {"name": "bids", "method": "bids", "budget": BUDGET},
            {"name": "apart", "method": "less", "budget": 8, "constraints": {"near_duplicates": 0.999}},
            {"name": "drawn", "method": "random", "budget": 4},
        ],
        "tune": {"epochs": 1, **loop},
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
        **changes,
    }


@pytest.fixture(scope="module")
def config(world) -> dict[str, Any]:
    return tree(world, world / "run")


@pytest.fixture(scope="module")
def tried(config) -> Validation:
    """A pilot on the whole pool, tuned, with a recipe that changes nothing and one that reads fewer tokens."""
    shorter = "shorter data.max_tokens=40"
    only = ["other seeds", "one checkpoint", "representation", "cascade 50%", "same", "shorter"]
    found, _ = pipeline.pilot(config, recipes=[SAME, shorter], only=only, rows=48, tune=True, device="h100")
    return found


@pytest.fixture(scope="module")
def sampled(config) -> tuple[Validation, Any]:
    return pipeline.pilot(config, rows=24, seed=3, device="h100", least=0.01, only=["representation", "cascade 50%"])


def lines_of(found: Validation) -> dict[str, dict[str, Any]]:
    return {one["name"]: dict(one) for one in found.results["pilot"]["recipes"]}


def files_of(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hash_file(path) for path in paths}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("full", {}),
        ("one checkpoint", {"warmup.epochs": 1}),
        ("representation", {"features": {"featurizer": "representation"}}),
        ("cascade 50%", {"cascade": CASCADE}),
    ],
)
def test_on_the_whole_pool_a_recipe_chooses_what_a_run_of_it_does(tried, world, config, tmp_path, name, changes):
    runs = {"full": influray.run(config, {}, run_dir=tmp_path / "full", until="select")}
    runs[name] = influray.run(config, changes, run_dir=tmp_path / "other", until="select") if changes else runs["full"]
    ids = {of: agreement.chosen_ids(one, "bids") for of, one in runs.items()}
    line = lines_of(tried)[name]
    assert line["rows"] == len(ids[name]) == 12
    assert line["overlap"] == len(set(ids[name]) & set(ids["full"])) / 12
    expected = agreement.merit(runs["full"], ids[name])
    assert line["merit_of_tasks"] == pytest.approx(expected, abs=1e-5)
    whole = agreement.merit(runs["full"], ids["full"])
    ratio = np.mean(list(expected.values())) / np.mean(list(whole.values()))
    assert line["merit"] == pytest.approx(ratio, abs=1e-5)
    if name.startswith("cascade"):
        assert line["correlation"] is None  # half of the rows have none
    else:
        assert line["correlation"] == pytest.approx(agreement.correlation(runs["full"], runs[name]), abs=1e-5)


def test_a_recipe_that_changes_no_row_keeps_all_of_it(tried):
    line = lines_of(tried)["same"]
    assert (line["overlap"], line["merit"]) == (1.0, 1.0)
    assert line["correlation"] == pytest.approx(1.0)
    assert line["loss_less_full"]["value"] == 0.0


def test_seeds_of_their_own_are_another_run(tried):
    line = lines_of(tried)["other seeds"]
    assert line["merit"] < 1.0
    assert line["correlation"] < 1.0


def test_fewer_tokens_cost_less(tried):
    lines = lines_of(tried)
    assert lines["shorter"]["worker_seconds"] < lines["full"]["worker_seconds"]


def test_losses_are_those_of_the_test_records_beside_random_rows(tried):
    found = tried.results["pilot"]
    assert found["records"] == "test"
    assert found["tuning_seeds"] == [0, 1]
    low, high = found["random"]["loss_less_full"]["interval"]
    assert low <= found["random"]["loss_less_full"]["value"] <= high
    losses = [one["loss"] for one in found["recipes"]]
    assert all(np.isfinite(losses))
    assert len(set(losses)) > 2


def test_the_cheapest_is_the_least_cost_among_those_that_keep_enough(tried, sampled):
    found, best = sampled
    lines = lines_of(found)
    assert set(lines) == {"full", "representation", "cascade 50%"}
    cheaper = [name for name, one in lines.items() if name != "full" and one["merit"] >= 0.01]
    expected = min(cheaper, key=lambda name: lines[name]["worker_seconds"]) if cheaper else None
    assert found.results["pilot"]["cheapest"] == expected
    assert (best is None) == (expected is None)
    strict = tried.results["pilot"]
    name = strict["cheapest"]
    again = next(one["merit"] for one in strict["recipes"] if one["name"] == "other seeds")
    assert strict["least"] == min(0.9, max(0.0, again))
    kept = [
        one
        for one in strict["recipes"]
        if one["merit"] >= strict["least"] and one["name"] not in ("full", "other seeds")
    ]
    costs = {one["name"]: one["worker_seconds"] for one in strict["recipes"]}
    kept = [one["name"] for one in kept if costs[one["name"]] < costs["full"]]
    assert name == (min(kept, key=costs.__getitem__) if kept else None)


def test_the_sample_is_drawn_by_its_seed_and_its_budgets_are_a_sample_of_the_budgets(sampled, config):
    found = sampled[0]
    assert (found.results["pilot"]["rows"], found.results["pilot"]["pool"]) == (24, 48)
    assert lines_of(found)["full"]["rows"] == 6
    folder = Path(config["run_dir"]) / "validate" / "pilot"
    pools = [Catalogue(path / "data" / "pool") for path in folder.iterdir() if (path / "data" / "pool").exists()]
    assert {len(one) for one in pools} == {24, 48}
    ids = [tuple(one.ids) for one in pools if len(one) == 24]
    assert len(set(ids)) == 1
    assert set(ids[0]) < set(next(one.ids for one in pools if len(one) == 48))


def test_a_second_call_makes_nothing_and_another_recipe_shares_what_it_can(sampled, config):
    folder = Path(config["run_dir"]) / "validate" / "pilot"
    before = files_of(folder)
    again, _ = pipeline.pilot(
        config, rows=24, seed=3, device="h100", least=0.01, only=["representation", "cascade 50%"]
    )
    assert again.results == sampled[0].results
    assert files_of(folder) == before
    more, _ = pipeline.pilot(
        config, rows=24, seed=3, device="h100", recipes=["dot attribution.options.similarity=dot"], only=["dot"]
    )
    made = {name for name in files_of(folder) if name not in before}
    assert set(lines_of(more)) == {"full", "dot"}
    assert made
    assert {Path(name).parts[1].partition("-")[0] for name in made} - {"logs"} == {"scores"}


def test_a_run_goes_on_beside_its_pilot_and_its_report_shows_it(sampled, tried, config):
    done = influray.run(config, until="select")
    report = influray.run(config, until="report-only").directory.report
    assert "Recipes on" in report.read_text(encoding="utf-8")
    pipeline.pilot(config, rows=24, seed=3, device="h100", only=["representation", "cascade 50%"], least=0.02)
    text = report.read_text(encoding="utf-8")
    assert "keeps 2.0% of the merit" in text, "the report is written again"
    assert "Recipes on" in text
    assert "other seeds" in text or "representation" in text
    assert len(done.selection("bids").rows) == 12
    assert read_sealed(done.directory.validation / "pilot.json")["experiment"] == "pilot"


def test_the_command_prints_a_table_and_writes_the_cheapest_config(config, sampled, tmp_path, capsys, monkeypatch):
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    target = tmp_path / "cheaper.yaml"
    argv = [
        "influray",
        "pilot",
        str(path),
        "--rows",
        "24",
        "--seed",
        "3",
        "--device",
        "h100",
        "--keep",
        "0.01",
        "--to",
        str(target),
    ]
    monkeypatch.setattr("sys.argv", [*argv, "--only", "representation,cascade 50%"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "Recipes on 24 of 48 rows, bids" in shown
    assert "cascade 50%" in shown
    cheapest = sampled[0].results["pilot"]["cheapest"]
    made = load_config(target)
    assert made == sampled[1]
    assert f"* {cheapest}" in shown
    with pytest.raises(SystemExit, match="2"):
        main()  # it is there already
    assert "--to" in capsys.readouterr().err


def test_of_a_config_with_a_cascade_the_full_recipe_is_without_it(world, tmp_path):
    cascading = tree(world, tmp_path / "run", cascade=CASCADE)
    found, _ = pipeline.pilot(cascading, rows=24, seed=3, device="h100", only=["cascade 50%"])
    plain, _ = pipeline.pilot(tree(world, tmp_path / "plain"), rows=24, seed=3, device="h100", only=["cascade 50%"])
    assert lines_of(found) == lines_of(plain)
    done = influray.run(cascading, until="select")  # which the pilot did not disturb
    assert done.attribution().shape[0] == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["one chekpoint"]}, "--only: no recipe is called 'one chekpoint'.*one checkpoint"),
        ({"recipes": ["broken"]}, "--recipe 'broken': expected NAME KEY=VALUE"),
        ({"recipes": ["x features.directoin=sgd"]}, "--recipe x: .*features.directoin"),
        ({"recipes": ["x data.pool=other.jsonl"]}, "--recipe x: data.pool: recipes choose from the same rows"),
        ({"recipes": ["full features.direction=sgd"]}, "--recipe: a name is given twice"),
        ({"recipes": ["x attribution.scorer=gram"]}, "--recipe x: .*gram"),
        (
            {
                "recipes": [
                    "x attribution.scorer=landmarks attribution.options.exact=r features.featurizer=representation"
                ]
            },
            "--recipe x: attribution.scorer: 'landmarks' carries over the scores of another run",
        ),
        ({"selector": "bid"}, "--selector: 'bid' is none of the config"),
        ({"selector": "drawn"}, "--selector: drawn draws its rows"),
        ({"rows": 5}, "--rows: 5 are too few"),
        ({"least": 1.5}, "--keep: found 1.5"),
        ({"device": "h900"}, "--device: found 'h900'"),
    ],
)
def test_wrong_pilots_are_refused_before_anything_is_made(world, tmp_path, options, message):
    place = tmp_path / "run"
    with pytest.raises((ConfigError, ArtifactMismatch), match=message):
        pipeline.pilot(tree(world, place), **options)
    assert not (place / "data").exists()
