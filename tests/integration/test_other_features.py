"""Features beside gradients through the whole pipeline: no warmup, and for n-grams no model at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import influray
from influray.data.catalogue import Catalogue
from influray.data.quarantine import read_quarantine
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.store.artifact import read_json
from tests.integration.test_pipeline import bytes_of, redone, stamps
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TASKS = ("sums", "reversals")
SCORER = {"representation": "inner_product", "ngram": "bm25", "loss": "el2n"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Model, targets, and a pool that copies of the targets are hidden in."""
    folder = tmp_path_factory.mktemp("other")
    write_tiny_model(folder / "model")
    write_tiny_model(folder / "hollow")
    (folder / "hollow" / "model.safetensors").unlink()
    copies = [
        {"id": f"copy-{row['id']}", "source": "planted", "messages": row["messages"]}
        for task in TASKS
        for row in target_rows(task)
    ]
    write_jsonl(folder / "pool" / "a.jsonl", [*pool_rows(24)[:13], *copies])
    write_jsonl(folder / "pool" / "b.jsonl", pool_rows(24)[13:])
    for task in TASKS:
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    return folder


def tree(world: Path, run_dir: Path, featurizer: str, **changes: Any) -> dict[str, Any]:
    base = {
        "run_dir": str(run_dir),
        # An n-gram run must not so much as look for weights.
        "model": {"base": str(world / ("hollow" if featurizer == "ngram" else "model"))},
        "data": {
            "root": str(world),
            "pool": "pool",
            "max_tokens": 128,
            "targets": {task: f"targets/{task}.jsonl" for task in TASKS},
        },
        "features": {"featurizer": featurizer, "rows_per_shard": 8},
        "attribution": {"scorer": SCORER[featurizer]},
        "selectors": [{"name": "top", "method": "instance_max", "budget": 6}],
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
    }
    return {**base, **changes}


def run(config: dict[str, Any], until: str = "select", **overrides: Any) -> influray.pipeline.Run:
    return influray.run(config, overrides, until=until)


@pytest.fixture(scope="module")
def first_of(world, tmp_path_factory) -> dict[str, influray.pipeline.Run]:
    """One finished run a featurizer, that the tests below look at or copy."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: run(tree(world, folder / name, name)) for name in SCORER}


@pytest.fixture(params=sorted(SCORER))
def first(request, first_of):
    return first_of[request.param]


def matrix_of(run: influray.pipeline.Run) -> np.ndarray:
    return np.concatenate([block for _, block in run.attribution().blocks()])


def test_there_is_one_datastore_a_split_and_no_warmup(first):
    directory, featurizer = first.directory, first.config.features.featurizer
    assert not directory.warmup.exists()
    assert not directory.features("pool", 2).exists()
    manifest = read_json(directory.features("pool", 1) / "manifest.json")
    assert manifest["featurizer"] == featurizer
    assert manifest["dimension"] == {"representation": 32, "ngram": 10_000, "loss": 0}[featurizer]
    assert manifest["rows"] == len(first.datastore("pool")) == 30
    assert first.attribution().manifest["weights"] == [1.0]
    assert first.attribution().shape == (30, 1 if featurizer == "loss" else 6)
    assert len(first.selection("top").rows) == 6


@pytest.mark.endurance
def test_two_workers_give_the_bytes_of_one(first_of, world, tmp_path):
    """Counts and their sums are whole numbers, so for n-grams other shards do not show either."""
    two = {"workers": 2, "cpus_per_worker": 0.5}
    again = run(tree(world, tmp_path / "r", "representation", resources=two), until="score")
    for name, parts in bytes_of(again.directory.path).items():
        assert parts == bytes_of(first_of["representation"].directory.path)[name]
    config = tree(world, tmp_path / "n", "ngram", resources=two)
    config["features"]["rows_per_shard"] = 5
    assert matrix_of(run(config, until="score")).tobytes() == matrix_of(first_of["ngram"]).tobytes()


def test_copies_of_targets_rank_first(first):
    if first.config.features.featurizer == "loss":
        return  # it does not look at targets
    ids = Catalogue(first.directory.data("pool")).ids
    matrix = matrix_of(first)
    for column, target in enumerate(first.attribution().target_ids):
        assert ids[int(matrix[:, column].argmax())] == f"copy-{target}"
    if first.config.features.featurizer == "representation":
        pool, target = (first.datastore(split).features().astype(np.float64) for split in ("pool", "target"))
        np.testing.assert_allclose(matrix, pool @ target.T, atol=1e-6)
        assert matrix.max(axis=0) == pytest.approx(1, abs=2e-3)


def test_a_task_to_avoid_takes_its_copies_out_and_redoes_the_selections_alone(first_of, tmp_path):
    done = first_of["ngram"]
    shutil.copytree(done.directory.path, tmp_path / "copy")
    config = {**done.config.model_dump(mode="json"), "run_dir": str(tmp_path / "copy")}
    before, ids = stamps(done), np.array(Catalogue(done.directory.data("pool")).ids)
    sought = {str(name) for name in ids[done.selection("top").rows]}
    assert sum(name.startswith("copy-t-rev") for name in sought) == 3
    avoid = {"data.targets.reversals.role": "avoid"}
    plan = influray.pipeline.plan(config, avoid)
    assert {step.name: step.state for step in plan.steps if step.name in ("data", "featurize", "score", "select")} == {
        **dict.fromkeys(("data", "featurize", "score"), "done"),
        "select": "to do: a file of ids or the role of a task has changed",
    }
    assert "avoid reversals" in next(step.what for step in plan.steps if step.name == "select")
    again = run(config, **avoid)
    assert redone(before, again) == {"select"}
    chosen = ids[again.selection("top").rows].tolist()
    assert not any(name.startswith("copy-t-rev") for name in chosen)
    assert sum(name.startswith("copy-t-sum") for name in chosen) == 3
    summary = read_json(again.directory.selection("top") / "selection.json")
    assert summary["roles"]["reversals"]["role"] == "avoid"
    assert summary["roles"]["reversals"]["mean"] <= 0
    assert list(summary["aid"]["tasks"]) == ["sums"]
    assert {column["task"] for column in summary["aid"]["columns"]} == {"sums"}
    found = influray.select(again.directory.attribution, None, 6, method="instance_max", roles={"reversals": "avoid"})
    assert found.rows.tolist() == again.selection("top").rows.tolist()
    before = stamps(again)
    back = run(config)
    assert redone(before, back) == {"select"}
    assert back.selection("top").rows.tolist() == done.selection("top").rows.tolist()


def test_what_no_feature_depends_on_redoes_nothing(first, world):
    before = stamps(first)
    config = first.config.model_dump(mode="json")
    changes = {"features.direction": "sgd", "features.projector.dimension": 16, "warmup.epochs": 7}
    assert redone(before, run(config, **changes)) == set()


def test_another_scorer_redoes_the_scores_and_another_option_the_features_too(first_of, tmp_path):
    done = first_of["ngram"]
    shutil.copytree(done.directory.path, tmp_path / "copy")
    config = {**done.config.model_dump(mode="json"), "run_dir": str(tmp_path / "copy")}
    before = stamps(done)
    dsir = {"attribution.scorer": "dsir", "attribution.options": {"smoothing": 0.1, "per_token": True}}
    again = run(config, until="score", **dsir)
    assert redone(before, again) == {"score"}
    assert again.attribution().groups == again.attribution().target_ids == TASKS
    assert set(again.attribution().target_rows.tolist()) == {-1}
    ids = Catalogue(again.directory.data("pool")).ids
    best = [ids[row] for row in matrix_of(again).argmax(axis=0)]
    assert [name.rpartition("-")[0] for name in best] == ["copy-t-sum", "copy-t-rev"]
    before = stamps(again)
    again = run(config, until="score", **{"features.options": {"n": 3}, "attribution.scorer": "length"})
    assert redone(before, again) == {"featurize", "score"}
    np.testing.assert_array_equal(matrix_of(again)[:, 0], again.datastore("pool").column("loss_tokens"))


def test_losses_are_plain_numbers_and_the_report_tells_of_them(first_of):
    done = first_of["loss"]
    store = done.datastore("pool")
    np.testing.assert_array_equal(matrix_of(done)[:, 0], store.column("el2n"))
    assert store.column("el2n").dtype == store.column("loss").dtype == np.float32
    assert done.selection("top").rows[0] == store.column("el2n").argmax()
    influray.run(done.config, until="report-only")
    assert done.directory.report.exists()


def test_a_scorer_that_the_store_cannot_carry_is_refused_before_anything_starts(world, tmp_path):
    for featurizer, scorer, message in (
        ("loss", "inner_product", "needs feature vectors, and these datastores hold 'loss'"),
        ("ngram", "inner_product", "needs feature vectors, and these datastores hold 'ngram'"),
        ("representation", "dsir", "needs counts of n-grams, and these datastores hold 'representation'"),
        ("ngram", "el2n", "needs the column 'el2n', and these datastores hold 'ngram' features, which have none"),
    ):
        config = tree(world, tmp_path / "run", featurizer, attribution={"scorer": scorer})
        with pytest.raises(ArtifactMismatch, match=message):
            run(config)
    assert not (tmp_path / "run" / "data").exists()


def test_wrong_options_and_a_warmup_that_nobody_reads_are_refused(world, tmp_path):
    config = tree(world, tmp_path / "run", "ngram")
    with pytest.raises(ConfigError, match=r"features\.options\.buckets: found 0, expected an integer from 1"):
        run(config, **{"features.options": {"buckets": 0}})
    with pytest.raises(ConfigError, match=r"features\.options\.n: 'gradient' has no such option \(known: step\)"):
        run(config, **{"features": {"options": {"n": 1}}, "attribution.scorer": "inner_product"})
    with pytest.raises(ConfigError, match="'ngram' reads no checkpoint, so there is nothing to warm up"):
        run(config, until="warmup")


@pytest.mark.endurance
def test_a_row_that_kills_every_process_goes_to_the_quarantine_and_all_others_have_features(world, tmp_path):
    rows = pool_rows(24)
    rows[5]["messages"][0]["content"] = "poison"
    write_jsonl(tmp_path / "pool.jsonl", rows)
    config = tree(world, tmp_path / "run", "ngram")
    config["data"] |= {"pool": str(tmp_path / "pool.jsonl"), "max_bad_fraction": 0.05}
    config["features"]["featurizer"] = "tests.integration.poison_features:PoisonFeaturizer"
    config["attribution"] = {"scorer": "bm25"}  # never run
    config["resources"]["max_attempts"] = 1
    poisoned = run(config, until="featurize")
    manifest = poisoned.datastore("pool").manifest
    assert list(manifest["failures"]) == ["5"]
    assert manifest["byte_reproducible"] is False
    assert manifest["rows"] == 23
    (found,) = [found for found in read_quarantine(poisoned.directory.quarantine_path) if found["stage"] == "featurize"]
    assert (found["row"], found["id"]) == (5, rows[5]["id"])
    assert "kills the process" in found["reason"]
    config["data"]["max_bad_fraction"] = 0.01
    with pytest.raises(DataError, match=r"1 of 24 rows of the pool cannot be used.*kills the process"):
        run(config, until="featurize")
