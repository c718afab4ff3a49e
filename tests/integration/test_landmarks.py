"""Two runs: exact scores of a drawn part of the pool, and the same scores carried to all rows by representations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import influray
from influray import pipeline
from influray.data.catalogue import Catalogue
from influray.protocols import ArtifactMismatch, ConfigError
from influray.store.artifact import read_json
from influray.store.moments import column_moments
from tests.integration.test_pipeline import bytes_of
from tests.integration.test_pipeline import tree as plain_tree
from tests.reference.kernel_ridge import median_width, ridge_prediction
from tests.tiny import pool_rows, write_jsonl, write_world

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]

ROWS = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    world = write_world(tmp_path_factory.mktemp("landmarks"))
    write_jsonl(world / "pool" / "a.jsonl", pool_rows(ROWS)[:16])
    write_jsonl(world / "pool" / "b.jsonl", pool_rows(ROWS)[16:])
    return world


@pytest.fixture(scope="module")
def exact(world, tmp_path_factory) -> influray.pipeline.Run:
    """Gradients of half of the pool, drawn without a model."""
    cascade = {
        "share": 0.5,
        "features": {"featurizer": "ngram", "options": {"buckets": 64}},
        "attribution": {"scorer": "length"},
        "selector": {"method": "random", "seed": 3},
    }
    features = {"projector": {"name": "rademacher", "dimension": 64}, "rows_per_shard": 8}
    warmup = {"fraction": 0.5, "epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "device_batch_size": 4}
    run_dir = tmp_path_factory.mktemp("exact") / "run"
    config = {**plain_tree(world, run_dir), "features": features, "warmup": warmup, "cascade": cascade}
    return influray.run(config, until="score")


def tree(world: Path, run_dir: Path, exact: Path, **changes: Any) -> dict[str, Any]:
    features = {"featurizer": "representation", "rows_per_shard": 5}
    attribution = {"scorer": "landmarks", "options": {"exact": str(exact)}}
    return {**plain_tree(world, run_dir), "features": features, "attribution": attribution, **changes}


@pytest.fixture(scope="module")
def spread(world, exact, tmp_path_factory) -> influray.pipeline.Run:
    return influray.run(tree(world, tmp_path_factory.mktemp("spread") / "run", exact.directory.path))


def test_all_rows_have_scores_those_of_the_dense_version_and_exact_ones_where_there_are(spread, exact):
    whole, part = Catalogue(spread.directory.data("pool")), Catalogue(exact.directory.data("pool"))
    row_E = np.array([whole.ids.index(one) for one in part.ids])
    exact_ET = np.asarray(exact.attribution())
    vector_ND = spread.datastore("pool").features().astype(np.float64)
    found = spread.attribution().manifest["propagation"]
    width = median_width(vector_ND[row_E])
    assert found["width"] == pytest.approx(width)
    expected = ridge_prediction(vector_ND[row_E], exact_ET.astype(np.float64), vector_ND, width, found["ridge"])
    expected[row_E] = exact_ET
    np.testing.assert_allclose(np.asarray(spread.attribution()), expected, atol=1e-5)
    assert (found["landmarks"], found["exact_rows"], len(found["columns"])) == (30, 30, 6)
    assert set(found["tasks"]) == {"sums", "reversals"}
    moments = column_moments([(np.arange(30), exact_ET[np.argsort(row_E)])])
    np.testing.assert_array_equal(spread.attribution().stats.mean_T, moments.mean)
    np.testing.assert_array_equal(spread.attribution().stats.std_T, moments.std)


def test_the_agreement_is_in_the_log_run_json_and_the_report(spread):
    held_out = spread.attribution().manifest["propagation"]["held_out"]
    said = f"agrees with what is exact at {held_out:.2f}"
    logs = "".join(path.read_text() for path in spread.directory.logs.rglob("*") if path.is_file())
    assert said in logs
    assert read_json(spread.directory.path / "run.json")["steps"]["score"]["held_out"] == held_out
    page = spread.directory.report.read_text()
    assert "Propagated scores" in page
    assert "30 rows have exact scores" in page


def test_the_number_of_workers_shows_in_no_byte(spread, exact, world, tmp_path):
    two = {"workers": 2, "cpus_per_worker": 0.5}
    again = influray.run(tree(world, tmp_path / "run", exact.directory.path, resources=two), until="select")
    assert bytes_of(again.directory.path) == bytes_of(spread.directory.path)


def test_a_finished_run_does_nothing_until_the_exact_scores_change(spread, exact, world, tmp_path, caplog):
    place = tmp_path / "exact"
    shutil.copytree(exact.directory.path, place)
    run_dir = tmp_path / "run"
    shutil.copytree(spread.directory.path, run_dir)
    config = tree(world, run_dir, place)
    influray.run(config, until="select")
    matrix = run_dir / "attribution" / "manifest.json"
    before = matrix.read_bytes()
    with caplog.at_level("INFO"):
        influray.run(config, until="select")
    assert "nothing to do up to select" in caplog.text
    states = {step.name: step.state for step in pipeline.plan(config).steps}
    assert (states["featurize"], states["score"]) == ("done", "done")
    # The same rows by another scorer.
    again = {**exact.config.model_dump(mode="json"), "run_dir": str(place)}
    again["attribution"] = {"scorer": "inner_product", "options": {"similarity": "dot"}}
    influray.run(again, until="score")
    states = {step.name: step.state for step in pipeline.plan(config).steps}
    assert (states["featurize"], states["score"]) == ("done", f"to do: the scores of {place} have changed")
    features = (run_dir / "features" / "pool" / "checkpoint-1" / "manifest.json").read_bytes()
    influray.run(config, until="select")
    assert matrix.read_bytes() != before
    assert (run_dir / "features" / "pool" / "checkpoint-1" / "manifest.json").read_bytes() == features


def test_other_rows_are_priced_by_the_run_that_has_exact_scores(spread, exact, world):
    with pytest.raises(ArtifactMismatch, match="ask the run that has them exactly, .*") as refused:
        influray.value(spread.directory.path, [str(world / "pool" / "a.jsonl")])
    assert str(exact.directory.path) in str(refused.value)


def test_what_does_not_fit_is_said_before_a_feature_is_made(exact, world, tmp_path):
    fewer = {"sums": "targets/sums.jsonl"}
    config = tree(world, tmp_path / "run", exact.directory.path)
    with pytest.raises(ConfigError, match=r"attribution\.options\.exact: .* has other targets than this run"):
        influray.run({**config, "data": {**config["data"], "targets": fewer}}, until="select")
    assert not (tmp_path / "run" / "features").exists()
    with pytest.raises(ConfigError, match=r"attribution\.options\.exact: .*holds no attribution matrix"):
        influray.run(tree(world, tmp_path / "other", tmp_path / "none"), until="select")
    assert not (tmp_path / "other" / "data").exists()
