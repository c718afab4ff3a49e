"""A cascade through the whole pipeline: a cheap pass chooses the rows that get gradients, and selection runs on those."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import influray
from influray import pipeline
from influray.data.catalogue import Catalogue
from influray.model.checkpoints import load_checkpoint
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.store.artifact import read_json
from tests.integration.test_pipeline import bytes_of, damage, redone, stamps
from tests.integration.test_pipeline import tree as plain_tree
from tests.killing import kill_when
from tests.tiny import pool_rows, write_jsonl, write_world

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]

BY_NGRAMS = {
    "features": {"featurizer": "ngram", "options": {"buckets": 64}, "rows_per_shard": 5},
    "attribution": {"scorer": "bm25"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("cascades"))


def tree(world: Path, run_dir: Path, share: float | None, **changes: Any) -> dict[str, Any]:
    """A run by gradients; its cheap pass is by representation unless `changes` have another."""
    cascade = {} if share is None else {"cascade": {"share": share, "features": {"rows_per_shard": 8}}}
    features = {"projector": {"name": "rademacher", "dimension": 64}, "rows_per_shard": 8}
    warmup = {"fraction": 0.5, "epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "device_batch_size": 4}
    return {**plain_tree(world, run_dir), "features": features, "warmup": warmup, **cascade, **changes}


def cheap(world: Path, run_dir: Path, share: float, **changes: Any) -> dict[str, Any]:
    """A run that takes no model: both passes by n-grams."""
    cascade = {"share": share, **BY_NGRAMS}
    selectors = [{"name": "top", "method": "instance_max", "budget": 0.25}]
    made = {"features": {"featurizer": "ngram", "rows_per_shard": 5}, "attribution": {"scorer": "bm25"}}
    return tree(world, run_dir, None, cascade=cascade, selectors=selectors, **{**made, **changes})


def run(config: dict[str, Any], until: str = "select", **overrides: Any) -> influray.pipeline.Run:
    return influray.run(config, overrides, until=until)


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> influray.pipeline.Run:
    return run(tree(world, tmp_path_factory.mktemp("plain") / "run", None))


@pytest.fixture(scope="module")
def half(world, tmp_path_factory) -> influray.pipeline.Run:
    return run(tree(world, tmp_path_factory.mktemp("half") / "run", 0.5))


@pytest.fixture(scope="module")
def small(world, tmp_path_factory) -> influray.pipeline.Run:
    return run(cheap(world, tmp_path_factory.mktemp("small") / "run", 0.5))


def everything(run_dir: Path) -> dict[str, Any]:
    """`bytes_of`, and the parts of the catalogues."""
    found = bytes_of(run_dir)
    for split in ("pool", "target"):
        parts = read_json(run_dir / "data" / split / "manifest.json")["parts"]
        found[split] = [part["sha256"] for part in parts if part["rows"]]
    return found


def never_scored(done: influray.pipeline.Run) -> list[str]:
    whole, passed = (Catalogue(one.data("pool")).ids for one in (done.directory.cascade, done.directory))
    return sorted(set(whole) - set(passed))


def copied(done: influray.pipeline.Run, to: Path) -> dict[str, Any]:
    shutil.copytree(done.directory.path, to)
    return {**done.config.model_dump(mode="json"), "run_dir": str(to)}


def test_with_all_rows_everything_is_as_without_a_cascade_byte_for_byte(plain, world, tmp_path):
    whole = run(tree(world, tmp_path / "run", 1.0))
    assert everything(whole.directory.path) == everything(plain.directory.path)
    digests = [load_checkpoint(one.directory.checkpoint(1)).digest for one in (plain, whole)]
    assert digests[0] == digests[1]


def test_the_pool_of_the_run_is_what_passed_in_the_order_of_the_whole_pool(half, plain):
    whole, passed = Catalogue(half.directory.cascade.data("pool")), Catalogue(half.directory.data("pool"))
    chosen = influray.open_run(half.directory.cascade.path).selection("passed").rows
    rows = np.sort(chosen)
    assert (len(whole), len(passed), passed.never_scored) == (24, 12, 12)
    assert whole.digest == Catalogue(plain.directory.data("pool")).digest
    facts = ("id", "file", "line", "source", "tokens", "loss_tokens", "truncated", "weight", "record", "input_ids")
    for name in facts:
        assert passed.values(name, 0, 12) == whole.gather(name, rows), name
    assert passed.values("row", 0, 12) == list(range(12))
    assert passed.file_lengths == [int((rows < 16).sum()), int((rows >= 16).sum())]
    assert half.datastore("pool").manifest["rows"] == half.attribution().shape[0] == 12
    assert half.datastore("pool").manifest["featurizer"] == "gradient"


def test_warmup_and_fractions_are_of_the_whole_pool_and_features_those_of_the_full_run(half, plain):
    digests = [load_checkpoint(one.directory.checkpoint(1)).digest for one in (plain, half)]
    assert digests[0] == digests[1]
    assert len(half.selection("less").rows) == len(plain.selection("less").rows) == 6
    ids = [Catalogue(one.directory.data("pool")).ids for one in (plain, half)]
    same = [ids[0].index(identity) for identity in ids[1]]
    matrices = [np.concatenate([block for _, block in one.attribution().blocks()]) for one in (plain, half)]
    np.testing.assert_allclose(matrices[1], matrices[0][same], atol=2e-3)


def test_a_finished_run_does_nothing_and_starts_no_ray(half):
    before, content = stamps(half), everything(half.directory.path)
    code = (
        "import sys, influray\n"
        f"influray.run({str(half.directory.config_path)!r}, until='select')\n"
        "heavy = {'ray', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (stamps(half), everything(half.directory.path)) == (before, content)


@pytest.mark.endurance
def test_the_number_of_workers_shows_nowhere(small, world, tmp_path):
    two = {"workers": 2, "cpus_per_worker": 0.5}
    again = run(cheap(world, tmp_path / "run", 0.5, resources=two))
    for place in ("", "cascade"):
        assert everything(again.directory.path / place) == everything(small.directory.path / place)


@pytest.mark.endurance
def test_another_share_redoes_what_follows_and_the_same_again_nothing(small, tmp_path):
    config, before = copied(small, tmp_path / "run"), stamps(small)
    again = run(config)
    assert redone(before, again) == set()
    inner = stamps(influray.open_run(again.directory.cascade.path))
    smaller = influray.run(config, {"cascade.share": 0.25}, until="select")
    assert redone(before, smaller) == {"cascade", "data", "featurize", "score", "select"}
    assert redone(inner, influray.open_run(again.directory.cascade.path)) == {"select"}
    assert len(Catalogue(smaller.directory.data("pool"))) == len(smaller.selection("top").rows) == 6
    before = stamps(smaller)
    assert redone(before, run(config)) >= {"data", "featurize", "score", "select"}
    assert everything(tmp_path / "run") == everything(small.directory.path)


@pytest.mark.endurance
def test_another_seed_of_a_cheap_pass_that_lets_the_same_rows_pass_redoes_no_feature(small, tmp_path):
    config = copied(small, tmp_path / "run")
    before = stamps(small)
    again = influray.run(config, {"cascade.selector.seed": 7}, until="select")
    assert redone(before, again).isdisjoint({"featurize", "score", "select"})
    assert everything(again.directory.path) == everything(small.directory.path)


def test_a_cascade_that_is_taken_out_or_put_in_changes_the_pool(small, world, tmp_path):
    config = copied(small, tmp_path / "run")
    without = {**config, "cascade": None}
    assert states(without)["data"] == "to do: cascade has changed"
    whole = run(without)
    assert len(Catalogue(whole.directory.data("pool"))) == whole.attribution().shape[0] == 24
    assert len(whole.selection("top").rows) == 6
    assert states(config)["data"].startswith("to do")
    run(config, until="data")
    assert len(Catalogue(whole.directory.data("pool"))) == 12


def states(config: dict[str, Any]) -> dict[str, str]:
    return {step.name: step.state for step in pipeline.plan(config).steps}


@pytest.mark.endurance
def test_a_file_added_to_the_pool_goes_through_the_cheap_pass(small, world, tmp_path):
    shutil.copytree(world, tmp_path / "world")
    write_jsonl(tmp_path / "world" / "pool" / "c.jsonl", pool_rows(30)[24:])
    config = copied(small, tmp_path / "run")
    config["data"]["root"] = str(tmp_path / "world")
    found = states(config)
    assert found["cascade"] == "to do: data of the cheap pass: data has changed"
    again = run(config)
    assert Catalogue(again.directory.cascade.data("pool")).digest
    assert (len(Catalogue(again.directory.data("pool"))), again.attribution().shape[0]) == (15, 15)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("data/pool/part-*.arrow", "flipped"),
        ("selection/passed/selection.parquet", "gone"),
        ("selection/passed/manifest.json", "torn"),
        ("run.json", "flipped"),
        ("run.json", "gone"),
    ],
)
def test_damage_of_the_cheap_pass_is_repaired(small, tmp_path, name, how):
    config = copied(small, tmp_path / "run")
    damage(next((tmp_path / "run" / "cascade").glob(name)), how)
    again = run(config)
    for place in ("", "cascade"):
        assert everything(again.directory.path / place) == everything(small.directory.path / place)
    assert not list((tmp_path / "run" / "cascade" / "data").rglob("*.damaged.tmp"))


def test_damage_that_a_later_step_finds_is_repaired_by_the_cheap_pass(small, tmp_path):
    """The catalogue of the whole pool is read again where that of the run is made again."""
    config = copied(small, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "data" / "pool")
    damage(next((tmp_path / "run" / "cascade" / "data" / "pool").glob("part-*.arrow")), "flipped")
    assert everything(run(config).directory.path) == everything(small.directory.path)


@pytest.mark.endurance
def test_ids_that_a_selection_includes_pass_whatever_their_score(small, world, tmp_path):
    lost = sorted(
        set(Catalogue(small.directory.cascade.data("pool")).ids) - set(Catalogue(small.directory.data("pool")).ids)
    )
    config = cheap(world, tmp_path / "run", 0.5)
    config["selectors"][0]["constraints"] = {"include": lost[:2]}
    done = run(config)
    ids = Catalogue(done.directory.data("pool")).ids
    assert set(lost[:2]) <= {ids[row] for row in done.selection("top").rows}


@pytest.mark.endurance
def test_a_task_to_avoid_limits_what_is_chosen_and_has_no_say_in_who_passes(small, world, tmp_path):
    config = copied(small, tmp_path / "run")
    config["data"]["targets"]["sums"]["role"] = "avoid"
    done = run(config)
    assert [len(Catalogue(one.data("target"))) for one in (done.directory.cascade, done.directory)] == [3, 6]
    only = cheap(world, tmp_path / "only", 0.5)
    del only["data"]["targets"]["sums"]
    assert Catalogue(done.directory.data("pool")).ids == Catalogue(run(only, until="data").directory.data("pool")).ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cascade.share": 0}, r"cascade\.share: .*greater than 0"),
        ({"cascade.share": 1.5}, r"cascade\.share: .*less than or equal to 1"),
        ({"cascade.shares": 0.5}, r"cascade\.shares: unknown key; did you mean 'share'"),
        (
            {"cascade.features.featurizer": "represent"},
            r"represent.*did you mean 'representation'|known:.*representation",
        ),
        ({"cascade.features.options": {"m": 1}}, r"^cascade\.features\.options\.m: 'ngram' has no such option"),
        ({"cascade.attribution.scorer": "inner_product"}, "needs feature vectors, and these datastores hold 'ngram'"),
        ({"cascade.selector.method": "lesss"}, r"^cascade\.selector\.method: no method is called 'lesss'"),
        ({"cascade.selector.method": "group"}, r"^cascade\.selector\.method.*makes none"),
        ({"selectors.0.budget": 0.75}, r"selectors\.0\.budget: 0\.75 of the pool, and cascade\.share lets 0\.5"),
        (
            {"cascade.share": 0.01, "selectors.0.budget": 1},
            r"^cascade\.share: 0\.01 of 24 usable rows is less than one",
        ),
    ],
)
def test_wrong_cascades_are_refused_by_their_own_keys(world, tmp_path, changes, message):
    with pytest.raises((ConfigError, ArtifactMismatch), match=message):
        run(cheap(world, tmp_path / "run", 0.5), until="select", **changes)
    assert not (tmp_path / "run" / "features").exists()


def test_a_budget_of_more_than_passed_is_refused_with_the_numbers(small, tmp_path):
    config = copied(small, tmp_path / "run")
    with pytest.raises(
        ConfigError, match="13 examples of a pool of 24 usable rows, of which cascade.share lets 12 pass"
    ):
        influray.run(config, {"selectors.0.budget": 13})
    with pytest.raises(ConfigError, match=r"what passes the cascade has \d+ in 12 usable rows"):
        influray.run(config, {"selectors.0.budget": {"tokens": 10**6}})


def test_what_should_be_known_of_a_cascade_is_said(world, tmp_path):
    by_gradients = {"share": 0.5, "features": {"featurizer": "gradient"}}
    notes = pipeline.plan(tree(world, tmp_path / "run", None, cascade=by_gradients)).notes
    assert any("'bids' says which rows pass, and less choose by other methods" in note for note in notes)
    assert any("gradients of every row at 1 checkpoints" in note for note in notes)
    assert not any("cascade" in note for note in pipeline.plan(cheap(world, tmp_path / "run", 0.5)).notes)


def test_a_step_that_is_not_part_of_the_run_is_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="cascade: required to run up to it"):
        run(tree(world, tmp_path / "run", None), until="cascade")


@pytest.mark.endurance
def test_the_plan_prices_both_passes_before_and_after(world, tmp_path):
    config = tree(world, tmp_path / "run", 0.5)
    before = pipeline.plan(config)
    assert not (tmp_path / "run").exists()
    whole = {step.name: step for step in pipeline.plan(tree(world, tmp_path / "none", None)).steps}
    steps = {step.name: step for step in before.steps}
    assert "cascade" not in whole
    assert steps["cascade"].rows == whole["featurize"].rows
    targets = 6
    assert steps["featurize"].rows - targets == pytest.approx((whole["featurize"].rows - targets) / 2, abs=1)
    assert steps["featurize"].operations == pytest.approx(whole["featurize"].operations / 2, rel=0.15)
    assert steps["warmup"].operations == whole["warmup"].operations
    assert steps["cascade"].operations > 0
    assert steps["cascade"].wall_seconds > 0
    run(config, until="cascade")
    between = {step.name: step for step in pipeline.plan(config).steps}
    assert (between["cascade"].state, between["data"].state) == ("done", "to do")
    assert between["featurize"].rows == 12 + targets
    done = run(config)
    after = pipeline.plan(config)
    found = {step.name: step for step in after.steps}
    assert {found[name].state for name in ("cascade", "data", "warmup", "featurize", "score", "select")} == {"done"}
    recorded = done.directory.read()["steps"]
    assert found["featurize"].rows == recorded["featurize"]["rows"] == 12 + targets
    assert (recorded["cascade"]["rows"], recorded["cascade"]["passed"]) == (24, 12)
    assert found["cascade"].actual_seconds == recorded["cascade"]["seconds"]
    assert found["featurize"].bytes == pytest.approx(steps["featurize"].bytes, rel=0.3)


def test_report_inspect_and_python_know_what_was_never_scored(small, world, tmp_path):
    config = copied(small, tmp_path / "run")
    done = run(config, until="report-only")
    chosen = influray.select(done.directory.attribution, None, 0.25, method="instance_max")
    assert chosen.rows.tolist() == done.selection("top").rows.tolist()
    page = done.directory.report.read_text()
    assert "12 of 24 examples" in page
    assert "by ngram, bm25, instance_max" in page
    lost = sorted(
        set(Catalogue(done.directory.cascade.data("pool")).ids) - set(Catalogue(done.directory.data("pool")).ids)
    )
    with pytest.raises(DataError, match="did not pass the cascade"):
        pipeline.inspect(config, identity=lost[0])
    fresh = cheap(world, tmp_path / "fresh", 0.5)
    assert pipeline.inspect(fresh, identity=lost[0]).id == lost[0]
    assert not (tmp_path / "fresh" / "cascade" / "features").exists()
    assert states(fresh)["cascade"] == "to do"


@pytest.mark.endurance
def test_a_cheap_pass_by_gradients_has_a_warmup_of_its_own(world, tmp_path):
    features = {"featurizer": "gradient", "projector": {"name": "rademacher", "dimension": 16}, "rows_per_shard": 24}
    warmup = {"fraction": 0.25, "epochs": 1, "learning_rate": 1e-2, "batch_size": 2, "device_batch_size": 2}
    cascade = {"share": 0.5, "features": features, "warmup": warmup, "selector": {"method": "bids"}}
    done = run(tree(world, tmp_path / "run", None, cascade=cascade))
    inner = influray.open_run(done.directory.cascade.path)
    assert inner.datastore("pool").manifest["dimension"] == 16
    assert done.datastore("pool").manifest["dimension"] == 64
    rows = [read_json(one.directory.warmup / "manifest.json")["rows"] for one in (inner, done)]
    assert rows == [6, 12]


@pytest.mark.endurance
def test_a_driver_that_is_killed_in_the_cheap_pass_goes_on_and_ends_in_the_same_bytes(
    small, world, tmp_path, ray_cluster
):
    config = cheap(world, tmp_path / "killed", 0.5)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "influray", "select", str(path), "--address", ray_cluster.address]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    receipts = tmp_path / "killed" / "cascade" / "features" / "pool" / "checkpoint-1" / "_receipts"
    kill_when(process, lambda: any(receipts.glob("*.json")))
    assert not (tmp_path / "killed" / "data").exists()
    again = run(config)
    for place in ("", "cascade"):
        assert everything(again.directory.path / place) == everything(small.directory.path / place)
