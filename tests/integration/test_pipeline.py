"""The whole job on 24 rows and a random Llama, through the same Ray code as a large one.

What must hold: every artifact is there and says the same; nothing is done twice; a change redoes what depends on it
and nothing else; the number of workers and an interruption do not show in a byte.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import influray
from influray.cli import main
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.store.artifact import hash_file, read_json
from influray.store.run_directory import RunDirectory
from tests.killing import kill_when
from tests.reference.corrected_shampoo import shampoo_influence
from tests.reference.datainf_loop import datainf
from tests.reference.whitening import whitened_cosines
from tests.tiny import chat, target_rows, write_jsonl, write_world

pytestmark = pytest.mark.ray

STEPS = ("data", "warmup", "featurize", "score", "select")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Model, pool and targets on disk."""
    return write_world(tmp_path_factory.mktemp("world"))


def tree(world: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "run_dir": str(run_dir),
        "model": {"base": str(world / "model"), "lora": {"r": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}},
        "data": {
            "root": str(world),
            "pool": "pool",
            "max_tokens": 128,
            "targets": {"sums": "targets/sums.jsonl", "reversals": "targets/reversals.jsonl"},
        },
        "warmup": {"fraction": 0.5, "epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "device_batch_size": 2},
        "features": {"projector": {"name": "rademacher", "dimension": 64}, "rows_per_shard": 2},
        "selectors": [
            {"name": "bids", "method": "bids", "budget": 6},
            {"name": "less", "method": "less", "budget": 0.25},
            {"name": "random", "method": "random", "budget": 6},
        ],
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
    }
    return {**base, **changes}


def run(config: dict[str, Any], until: str = "select", **overrides: Any) -> influray.pipeline.Run:
    return influray.run(config, overrides, until=until)


@pytest.fixture(scope="module")
def first(world, tmp_path_factory, ray_cluster):
    """One finished run that the tests below look at or copy."""
    return run(tree(world, tmp_path_factory.mktemp("run") / "first"))


def copied(first: influray.pipeline.Run, tmp_path: Path, world: Path, **changes: Any) -> dict[str, Any]:
    """The config of a copy of a finished run."""
    shutil.copytree(first.directory.path, tmp_path / "copy")
    return tree(world, tmp_path / "copy", **changes)


def warmed_up(first: influray.pipeline.Run, run_dir: Path) -> None:
    """Make a run directory that has the warmup of a finished run and nothing else."""
    RunDirectory(run_dir).claim()
    shutil.copytree(first.directory.warmup, run_dir / "warmup")


def bytes_of(run_dir: Path) -> dict[str, Any]:
    """The content of every datastore, matrix and selection, by what manifests say and files are."""
    found: dict[str, Any] = {}
    for manifest in [*sorted(run_dir.glob("features/*/*/manifest.json")), run_dir / "attribution" / "manifest.json"]:
        parts = read_json(manifest)["parts"]
        name = str(manifest.parent.relative_to(run_dir))
        found[name] = [part["sha256"] for part in parts]
        for part in parts:
            assert hash_file(manifest.parent / part["file"]) == part["sha256"]
    for path in sorted(run_dir.glob("selection/*/selected.jsonl")) + sorted(
        run_dir.glob("selection/*/selection.parquet")
    ):
        found[str(path.relative_to(run_dir))] = hash_file(path)
    return found


def stamps(run: influray.pipeline.Run) -> dict[str, str]:
    return {name: facts["started"] + str(facts["seconds"]) for name, facts in run.directory.read()["steps"].items()}


def redone(before: dict[str, str], run: influray.pipeline.Run) -> set[str]:
    after = stamps(run)
    return {name for name in after if after[name] != before.get(name)}


def test_a_selection_is_records_as_they_were_read_in_order_of_choice(first, world):
    pool = [
        *(world / "pool" / "a.jsonl").read_bytes().splitlines(),
        *(world / "pool" / "b.jsonl").read_bytes().splitlines(),
    ]
    for name in ("bids", "less", "random"):
        selection = first.selection(name)
        folder = first.directory.selection(name)
        assert len(selection.rows) == 6
        assert len(set(selection.rows.tolist())) == 6
        assert (folder / "selected.jsonl").read_bytes().splitlines() == [pool[row] for row in selection.rows]
        table = pq.read_table(folder / "selection.parquet")
        assert table["id"].to_pylist() == [json.loads(pool[row])["id"] for row in selection.rows]
        summary = read_json(folder / "selection.json")
        assert summary["budget"]["examples"] == 6
        assert set(summary["aid"]["tasks"]) == {"sums", "reversals"}
        assert sum(summary["thi"]["task"].values()) == 6


def test_the_selection_on_disk_is_that_of_the_matrix_in_memory(first):
    attribution = first.attribution()
    matrix = np.concatenate([block for _, block in attribution.blocks()])
    for source in (matrix, first.directory.attribution):
        again = influray.select(source, attribution.groups, 6, method="bids")
        np.testing.assert_array_equal(again.rows, first.selection("bids").rows)
        np.testing.assert_allclose(again.merit, first.selection("bids").merit, rtol=1e-9)


def test_the_matrix_is_the_weighted_inner_product_of_the_stored_rows(first):
    attribution = first.attribution()
    weights = attribution.manifest["weights"]
    expected = np.zeros(attribution.shape)
    for k, weight in enumerate(weights, start=1):
        pool, target = (first.datastore(split, k).features().astype(np.float64) for split in ("pool", "target"))
        expected += weight * pool @ target.T
    np.testing.assert_allclose(np.concatenate([a for _, a in attribution.blocks()]), expected, atol=1e-6)
    assert sum(weights) == pytest.approx(1)


def test_a_finished_run_does_nothing_and_starts_no_ray(first, world):
    before, content = stamps(first), bytes_of(first.directory.path)
    code = (
        "import sys, influray\n"
        "from influray.report.compare import compare\n"
        f"run = influray.run({str(first.directory.config_path)!r}, until='select')\n"
        "compare([run.directory.path])  # which `influray run` prints\n"
        "heavy = {'ray', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, f'a run with nothing to do imported {heavy}'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert stamps(first) == before
    assert bytes_of(first.directory.path) == content


def test_curves_of_a_finished_run_read_and_select_but_compute_no_feature(first, monkeypatch, capsys):
    before = first.directory.path.joinpath("run.json").read_bytes()
    path = str(first.directory.config_path)
    monkeypatch.setattr(sys, "argv", ["influray", "select", path, "--curve", "--curve-budget", "1.0"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "Knee of coverage" in out
    assert str(first.directory.report.with_name("curves.html")) in out
    numbers = read_json(first.directory.report.with_name("curves.json"))["selections"]
    rows = first.attribution().shape[0]
    assert {found["examples"][-1] for found in numbers.values()} == {rows}
    whole = [found["macro_aid"][-1] for found in numbers.values()]
    np.testing.assert_allclose(whole, 0, atol=1e-5, err_msg="the whole pool has no influence beyond its own mean")
    with pytest.raises(ConfigError, match=f"--curve-budget: {rows + 1} examples of {rows} rows"):
        influray.pipeline.curves(path, budget=rows + 1)
    assert first.directory.path.joinpath("run.json").read_bytes() == before


def test_two_workers_give_the_bytes_of_one(first, world, tmp_path):
    config = tree(world, tmp_path / "two", resources={"workers": 2, "cpus_per_worker": 0.5})
    warmed_up(first, tmp_path / "two")
    again = run(config)
    assert bytes_of(again.directory.path) == bytes_of(first.directory.path)


def test_a_warmup_from_the_same_seed_is_the_same(first, world, tmp_path):
    again = run(tree(world, tmp_path / "again"), until="warmup")
    for number in (1, 2):
        for name in ("moments.safetensors", "adapter/adapter_model.safetensors"):
            assert hash_file(again.directory.checkpoint(number) / name) == hash_file(
                first.directory.checkpoint(number) / name
            )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"attribution": {"weights": "uniform"}}, {"score", "select"}),
        ({"features.projector.seed": 1}, {"featurize", "score", "select"}),
        ({"resources.workers": 2, "data.max_bad_fraction": 0.5}, set()),
    ],
    ids=["weights", "projector", "resources"],
)
def test_a_changed_config_redoes_what_depends_on_it_and_nothing_else(first, world, tmp_path, overrides, expected):
    config = copied(first, tmp_path, world)
    again = run(config, **overrides)
    assert redone(stamps(first), again) == expected


def test_a_changed_budget_redoes_its_own_selection_alone(first, world, tmp_path):
    config = copied(first, tmp_path, world)
    kept = hash_file(first.directory.selection("less") / "selection.parquet")
    stamp = (tmp_path / "copy" / "selection" / "less" / "manifest.json").stat().st_mtime_ns
    again = run(config, **{"selectors.0.budget": 4})
    assert redone(stamps(first), again) == {"select"}
    assert len(again.selection("bids").rows) == 4
    np.testing.assert_array_equal(again.selection("bids").rows, first.selection("bids").rows[:4])
    assert (again.directory.selection("less") / "manifest.json").stat().st_mtime_ns == stamp
    assert hash_file(again.directory.selection("less") / "selection.parquet") == kept


def test_a_file_added_to_the_pool_brings_only_its_own_rows(first, tmp_path, world):
    grown = tmp_path / "grown"
    shutil.copytree(world, grown)
    write_jsonl(
        grown / "pool" / "Added.jsonl", [chat(f"new-{i}", "new", f"Add {i} and 1.", str(i + 1)) for i in range(6)]
    )
    config = copied(first, tmp_path, world)
    config["data"] = {**config["data"], "root": str(grown)}
    again = run(config)
    facts = again.directory.read()["steps"]["featurize"]
    assert facts["rows"] == 6 * 2, "six new rows at two checkpoints; the others are there"
    assert "warmup" not in redone(stamps(first), again), "a pool that only grew keeps its warmup"
    old, new = bytes_of(first.directory.path), bytes_of(again.directory.path)
    for name, parts in old.items():
        if name.startswith("features/pool"):
            assert new[name][: len(parts)] == parts
            assert len(new[name]) > len(parts)
    assert again.attribution().shape == (30, 6)

    (again.directory.path / "run.json").unlink()
    stamp = (again.directory.warmup / "manifest.json").stat().st_mtime_ns
    run(config)
    assert (again.directory.warmup / "manifest.json").stat().st_mtime_ns == stamp, "how much the pool had is kept there"
    assert bytes_of(again.directory.path) == new


def test_a_new_target_computes_only_its_own_features(first, world, tmp_path):
    config = copied(first, tmp_path, world)
    write_jsonl(tmp_path / "more.jsonl", [chat(f"m-{i}", "m", f"Say {i}!", f"{i}!") for i in range(2)])
    config["data"] = {**config["data"], "targets": {"more": str(tmp_path / "more.jsonl"), **config["data"]["targets"]}}
    again = run(config)
    assert again.directory.read()["steps"]["featurize"]["rows"] == 2 * 2
    assert again.attribution().shape == (24, 8)
    assert again.attribution().groups.count("more") == 2


def test_copies_of_targets_hidden_in_the_pool_rank_first(world, tmp_path, first):
    planted = tmp_path / "planted"
    shutil.copytree(world, planted)
    targets = [*target_rows("sums"), *target_rows("reversals")]
    copies = [{"id": f"copy-{row['id']}", "source": "planted", "messages": row["messages"]} for row in targets]
    write_jsonl(planted / "pool" / "m.jsonl", copies)
    config = copied(first, tmp_path, world)
    config["data"] = {**config["data"], "root": str(planted)}
    # The plain direction, so that a copy's feature is the target's own: any fault in masks, rows or order shows.
    config["features"] = {**config["features"], "direction": "sgd"}
    again = run(config)
    catalogue = pq.read_table(again.directory.selection("bids") / "selection.parquet")
    assert set(catalogue["source"].to_pylist()) == {"planted"}, "each of six copies is best for one of six targets"
    matrix = np.concatenate([block for _, block in again.attribution().blocks()])
    from influray.data.catalogue import Catalogue

    ids = Catalogue(again.directory.data("pool")).ids
    for column, target in enumerate(again.attribution().target_ids):
        assert ids[int(matrix[:, column].argmax())] == f"copy-{target}"
        assert matrix[:, column].max() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.endurance
def test_a_driver_that_is_killed_goes_on_and_ends_in_the_same_bytes(first, world, tmp_path, ray_cluster):
    config = tree(world, tmp_path / "killed")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))  # tasks in this order are columns in this order
    # What happens in the warmup is the business of test_training.
    warmed_up(first, tmp_path / "killed")
    command = [sys.executable, "-m", "influray", "select", str(path), "--address", ray_cluster.address]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    receipts = tmp_path / "killed" / "features" / "pool" / "checkpoint-1" / "_receipts"
    kill_when(process, lambda: len(list(receipts.glob("*.json"))) >= 3)
    assert not (tmp_path / "killed" / "selection").exists()
    again = run(config)
    assert bytes_of(again.directory.path) == bytes_of(first.directory.path)


def test_bad_rows_go_to_the_quarantine_and_too_many_stop_the_run(world, tmp_path, ray_cluster):
    bad = tmp_path / "bad"
    shutil.copytree(world, bad)
    with open(bad / "pool" / "b.jsonl", "a") as file:
        file.write('{"id": "x", "messages": []}\nnot json\n')
    config = tree(world, tmp_path / "run")
    config["data"] = {**config["data"], "root": str(bad)}
    with pytest.raises(DataError, match=r"2 of 26 rows of the pool cannot be used.*max_bad_fraction"):
        run(config, until="data")
    assert not (tmp_path / "run" / "data" / "pool" / "manifest.json").exists()
    config["data"]["max_bad_fraction"] = 0.1
    run(config, until="data")
    entries = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [(e["file"], e["line"]) for e in entries] == [("pool/b.jsonl", 9), ("pool/b.jsonl", 10)]


def test_only_one_driver_at_a_time(first):
    with first.directory.hold(), pytest.raises(ConfigError, match="in use by process"):
        influray.run(first.config, until="select")


def test_tune_without_its_section_says_so(first):
    with pytest.raises(ConfigError, match="tune: required"):
        influray.run(first.config, until="tune")


def matrix_of(run: influray.pipeline.Run) -> np.ndarray:
    return np.concatenate([block for _, block in run.attribution().blocks()])


def exact_rows(run: influray.pipeline.Run, split: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The stored unit rows and their norms, float64."""
    store = run.datastore(split, k)
    return store.features().astype(np.float64), store.column("norm").astype(np.float64)[:, None]


@pytest.mark.endurance
def test_a_fitted_scorer_gives_the_same_bytes_at_any_number_of_workers_and_is_fitted_once(first, world, tmp_path):
    found = []
    for workers in (1, 2):
        shutil.copytree(first.directory.path, tmp_path / str(workers))
        config = tree(world, tmp_path / str(workers), attribution={"scorer": "whitened", "options": {"ridge": 0.01}})
        config["resources"] = {"workers": workers, "cpus_per_worker": 0.5}
        again = run(config)
        (state,) = again.directory.fit.glob("part-*.arrow")  # the sums are gone
        found.append((bytes_of(again.directory.path), hash_file(state)))
    assert found[0] == found[1]
    assert redone(stamps(first), again) == {"score", "select"}
    stamp = state.stat().st_mtime_ns
    shutil.rmtree(again.directory.attribution)
    again = run(config)
    assert (bytes_of(again.directory.path), hash_file(state)) == found[0]
    assert state.stat().st_mtime_ns == stamp
    weights = again.attribution().manifest["weights"]
    exact = [(exact_rows(again, "pool", k)[0], exact_rows(again, "target", k)[0]) for k in (1, 2)]
    expected = sum(w * whitened_cosines(g, v, 0.01) for w, (g, v) in zip(weights, exact, strict=True))
    np.testing.assert_allclose(matrix_of(again), expected, atol=1e-5)


@pytest.mark.endurance
def test_datainf_reads_plain_gradients_in_a_block_for_each_module(first, world, tmp_path):
    config = copied(first, tmp_path, world, attribution={"scorer": "datainf"})
    config["features"] = {**config["features"], "direction": "sgd", "blocks": "module", "store": "int8"}
    again = run(config)
    kinds = [next(again.datastore(split).parts()).schema.field("feature").type for split in ("pool", "target")]
    assert [str(kind.value_type) for kind in kinds] == ["int8", "halffloat"], "targets keep full precision"
    assert again.datastore("pool").manifest["bounds"] == [0, 16, 32, 48, 64], "two layers of q and v"
    expected = np.zeros((24, 6))
    for k, weight in enumerate(again.attribution().manifest["weights"], start=1):
        pool, target = (np.multiply(*exact_rows(again, split, k)) for split in ("pool", "target"))
        expected += weight * datainf(pool, target, (0, 16, 32, 48, 64), 0.1)
    np.testing.assert_allclose(matrix_of(again), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.endurance
def test_shampoo_reads_a_matrix_for_each_weight_at_any_number_of_workers(first, world, tmp_path):
    found = []
    for workers in (1, 2):
        config = copied(first, tmp_path / str(workers), world, attribution={"scorer": "shampoo"})
        projector = {"name": "factored", "dimension": 512}
        config["features"] = {**config["features"], "direction": "sgd", "blocks": "module", "projector": projector}
        config["resources"] = {**config["resources"], "workers": workers}
        again = run(config)
        manifest = again.datastore("pool").manifest
        assert manifest["bounds"] == [0, 128, 256, 384, 512]
        assert [first for first, _, _ in manifest["factors"]] == list(range(0, 512, 64))
        factors = tuple(tuple(one) for one in manifest["factors"])
        expected = np.zeros((24, 6))
        for k, weight in enumerate(again.attribution().manifest["weights"], start=1):
            pool, target = (np.multiply(*exact_rows(again, split, k)) for split in ("pool", "target"))
            expected += weight * shampoo_influence(pool, target, factors, 0.1)
        np.testing.assert_allclose(matrix_of(again), expected, atol=1e-4 * np.abs(expected).max())
        found.append(matrix_of(again))
    assert np.array_equal(*found)


def test_selectors_that_compare_rows_are_given_the_features_of_the_run(first, world, tmp_path):
    methods = ("knn_kde", "group", "weighted_draw")
    config = copied(first, tmp_path, world)
    config["selectors"] = [{"name": name, "method": name, "budget": 6} for name in methods]
    again = run(config)
    attribution = again.attribution()
    for name in methods:
        expected = influray.select(
            *(matrix_of(again), attribution.groups, 6),
            method=name,
            features=attribution.features().gather(attribution.rows),
        )
        assert again.selection(name).rows.tolist() == attribution.rows[expected.rows].tolist()
        path = again.directory.attribution
        assert influray.select(path, None, 6, method=name).rows.tolist() == again.selection(name).rows.tolist()


def test_a_score_without_targets_is_one_column_of_which_everything_can_be_made(first, world, tmp_path):
    config = copied(first, tmp_path, world, attribution={"scorer": "grand"})
    again = run(config, until="report-only")
    attribution = again.attribution()
    assert (attribution.shape, attribution.groups, attribution.target_rows.tolist()) == ((24, 1), ("grand",), [-1])
    norms = [again.datastore("pool", k).column("grad_norm").astype(np.float64) for k in (1, 2)]
    np.testing.assert_allclose(matrix_of(again)[:, 0], np.array(attribution.manifest["weights"]) @ norms, rtol=1e-6)
    assert set(again.selection("less").rows.tolist()) == set(
        np.argsort(-matrix_of(again)[:, 0], kind="stable")[:6].tolist()
    )
    assert "grand" in again.directory.report.read_text()


def test_a_scorer_that_the_stores_cannot_carry_is_refused_before_anything_starts(world, tmp_path):
    config = tree(world, tmp_path / "none", attribution={"scorer": "gram"})
    with pytest.raises(ArtifactMismatch, match=r"'gram' needs plain gradients.*set features\.direction: sgd"):
        run(config)
    assert not (tmp_path / "none").exists()


def damage(path: Path, how: str) -> None:
    """What happens to a file after its commit: its end is cut off, one bit of it flips, or it is gone."""
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "torn":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.endurance
@pytest.mark.parametrize(
    "damages",
    [
        {
            "features/pool/checkpoint-2/part-*.arrow": "torn",
            "features/target/checkpoint-1/part-*.arrow": "flipped",
            "data/pool/part-*.arrow": "flipped",
        },
        {
            "attribution/part-*.arrow": "flipped",
            "attribution/targets.arrow": "gone",
            "selection/bids/selected.jsonl": "torn",
        },
        {"warmup/checkpoint-1/moments.safetensors": "flipped"},
    ],
    ids=lambda damages: next(iter(damages)).partition("/")[0],
)
def test_files_that_are_damaged_after_their_commit_are_made_again(first, world, tmp_path, damages):
    config = copied(first, tmp_path, world)
    expected = bytes_of(first.directory.path)
    folder = tmp_path / "copy"
    damaged = [sorted(folder.glob(pattern))[0] for pattern in damages]
    whole = [hash_file(path) for path in damaged]
    for path, how in zip(damaged, damages.values(), strict=True):
        damage(path, how)
    # A file is read only where a later step has work to do.
    shutil.rmtree(folder / "selection" / "less")
    if any(pattern.startswith("features") for pattern in damages):
        shutil.rmtree(folder / "attribution")
    run(config)
    assert bytes_of(folder) == expected
    for path, digest in zip(damaged, whole, strict=True):
        assert digest in [hash_file(file) for file in path.parent.iterdir() if file.is_file()], f"{path} is not whole"
    assert not list(folder.rglob("*.damaged.tmp"))


def test_manifests_that_are_damaged_are_made_again(first, world, tmp_path):
    config = copied(first, tmp_path, world)
    expected, folder = bytes_of(first.directory.path), tmp_path / "copy"
    for name, how in (
        ("warmup/manifest.json", "torn"),
        ("features/pool/checkpoint-1/manifest.json", "flipped"),
        ("attribution/manifest.json", "torn"),
    ):
        damage(folder / name, how)
    run(config)
    assert bytes_of(folder) == expected
