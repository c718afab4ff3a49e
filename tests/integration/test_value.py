"""`influray value` on a tiny world: rows are scored as the pool's are, and those are worth most that a task lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import influray
from influray.cli import main
from influray.data.catalogue import Catalogue
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.runs import Run
from influray.store.artifact import hash_file, read_sealed
from influray.store.attribution import Attribution
from tests.reference import worth
from tests.tiny import chat, pool_rows, target_rows, write_jsonl, write_tested_world

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]

TASKS = ("sums", "reversals")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A pool without a single reversal, and files of rows on offer."""
    folder = write_tested_world(tmp_path_factory.mktemp("value"), 24)
    pool = [row for row in pool_rows(36) if row["source"] != "reversals"]
    write_jsonl(folder / "pool.jsonl", pool)
    words = ("x6", "x7", "x8", "x9", "q3", "w1")
    lacking = [chat(f"new-{i}", "bought", f"Reverse {word}.", word[::-1]) for i, word in enumerate(words)]
    write_jsonl(folder / "lacking.jsonl", lacking)
    some = [pool[i] for i in (20, 3, 11)]
    write_jsonl(folder / "some.jsonl", some)
    write_jsonl(folder / "mixed.jsonl", [*some, {**target_rows("reversals")[0], "id": "leak"}, *lacking])
    write_jsonl(folder / "leak.jsonl", target_rows("sums"))
    (folder / "broken.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    return folder


def tree(world: Path, run_dir: str, **changes: Any) -> dict[str, Any]:
    loop = {"learning_rate": 1e-2, "batch_size": 8, "device_batch_size": 8, "warmup_ratio": 0.0}
    targets = {t: {"files": f"{t}.jsonl", "test": f"{t}-test.jsonl"} for t in TASKS}
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
    return {
        "run_dir": str(world / run_dir),
        "model": {"base": str(world / "model"), "lora": lora},
        "data": {"root": str(world), "pool": "pool.jsonl", "max_tokens": 128, "targets": targets},
        "warmup": {"fraction": 0.5, "epochs": 2, **loop},
        "features": {"direction": "sgd", "projector": {"name": "rademacher", "dimension": 64}, "rows_per_shard": 9},
        "selectors": [
            {"name": "narrow", "method": "less", "budget": 6, "constraints": {"sources": {"talk": {"max": 0}}}},
            {"name": "all", "method": "less", "budget": 24},
        ],
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
        **changes,
    }


@pytest.fixture(scope="module")
def done(world) -> Run:
    run = influray.run(tree(world, "run"), until="select")
    records = run.directory.selection("narrow") / "selected.jsonl"
    chosen = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    write_jsonl(world / "copies.jsonl", [{**row, "id": f"again-{i}"} for i, row in enumerate([*chosen, chosen[0]])])
    return run


@pytest.fixture(scope="module")
def untouched(done) -> dict[str, str]:
    """The files of the run before anything was priced."""
    return files_of(done.directory.path)


@pytest.fixture(scope="module")
def lacking(world, done, untouched) -> dict[str, Any]:
    return influray.value(done.directory.path, [str(world / "lacking.jsonl")])


def tasks_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["task"]: one for one in found["tasks"]}


def standardised(run: Run, place: str = "") -> tuple[np.ndarray, list[str]]:
    """z [n, C] of the rows of the run, or of those on offer at a place, by the run's own mean and deviation."""
    own = Attribution(run.directory.attribution)
    score_NT = np.asarray(own, dtype=np.float64)
    here = Attribution(run.directory.path / place / "attribution") if place else own
    return (np.asarray(here, dtype=np.float64) - score_NT.mean(axis=0)) / score_NT.std(axis=0), list(own.groups)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path): hash_file(path)
        for path in folder.rglob("*")
        if path.is_file() and not {"logs", "lease.json"} & {*path.parts}
    }


def test_rows_of_the_pool_have_the_lines_that_they_have_in_the_run(world, done):
    found = influray.value(done.directory.path, [str(world / "pool.jsonl")], rows=5)
    own = Attribution(done.directory.attribution)
    here = Attribution(done.directory.path / found["place"] / "attribution")
    np.testing.assert_array_equal(np.asarray(here), np.asarray(own))
    np.testing.assert_array_equal(here.stats.mean_T, own.stats.mean_T)
    assert found["copies"]["rows"] == found["rows"] == 24
    for one in found["tasks"]:
        assert one["mean"] == pytest.approx(0.0, abs=1e-5)


def test_rows_of_the_kind_that_a_task_lacks_are_worth_more_than_copies_of_what_is_chosen(world, done, lacking):
    copies = influray.value(done.directory.path, [str(world / "copies.jsonl")])
    assert copies["copies"]["rows"] == copies["rows"] == 7
    kinds = {(one["of"], one["kind"]): one["rows"] for one in copies["copies"]["kinds"]}
    assert kinds == {("pool", "same text"): 7, ("pool", "near"): 0, ("new", "same text"): 0, ("new", "near"): 0}
    assert lacking["copies"]["rows"] == 0
    for one in copies["tasks"]:
        assert one["gain"] == pytest.approx(0.0, abs=0.02)  # their features were rounded in other batches
    reversals = tasks_of(lacking)["reversals"]
    assert reversals["gain"] > 0.05
    assert reversals["gain_of_best"] >= reversals["gain"]
    assert reversals["mean"] > 1.0
    assert tasks_of(lacking)["sums"]["mean"] < 0.5


def test_the_numbers_are_those_of_plain_loops(done, lacking):
    z_NC, groups = standardised(done)
    z_nC, _ = standardised(done, lacking["place"])
    chosen = done.selection("narrow").rows
    assert (lacking["counted"], lacking["rows"], lacking["chosen"]) == (6, 6, 6)
    help_C = worth.cover(z_NC[chosen])
    free_NC = np.delete(z_NC, chosen, axis=0)
    for key, rows in (("gain", z_nC), ("gain_of_pool", free_NC)):
        gain_C = [worth.expected_gain(rows[:, c], help_C[c], 6) for c in range(len(groups))]
        expected = worth.by_task(np.array(gain_C), groups)
        assert {task: one[key] for task, one in tasks_of(lacking).items()} == pytest.approx(expected, abs=1e-6)
        assert lacking["mean"][key] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    rows, gains = worth.best_subset(z_nC, help_C, groups, 6)
    assert lacking["best"]["rows"] == rows
    assert lacking["best"]["gains"] == pytest.approx(gains, abs=1e-6)
    assert lacking["mean"]["gain_of_best"] == pytest.approx(sum(gains), abs=1e-6)
    for task, one in tasks_of(lacking).items():
        member = [group == task for group in groups]
        assert one["mean"] == pytest.approx(z_nC[:, member].mean(), abs=1e-6)
        assert one["mean_of_chosen"] == pytest.approx(z_NC[chosen][:, member].mean(), abs=1e-6)


def test_the_shopping_list_has_a_target_of_every_task_with_the_rows_that_come_nearest(done, lacking):
    z_NC, groups = standardised(done)
    z_nC, _ = standardised(done, lacking["place"])
    ids = Attribution(done.directory.attribution).target_ids
    known = {"pool": Catalogue(done.directory.data("pool")).ids}
    known["new"] = Catalogue(done.directory.path / lacking["place"] / "data" / "pool").ids
    listed = {one["id"]: one for one in lacking["wanted"]["targets"]}
    for task in TASKS:
        least = min(
            (c for c in range(len(groups)) if groups[c] == task), key=lambda c: max(z_NC[:, c].max(), z_nC[:, c].max())
        )
        assert ids[least] in listed
    for one in listed.values():
        c = ids.index(one["id"])
        assert one["z_of_pool"] == pytest.approx(z_NC[:, c].max(), abs=1e-6)
        assert one["z_of_new"] == pytest.approx(z_nC[:, c].max(), abs=1e-6)
        best = sorted(
            [*((z, "pool", i) for i, z in enumerate(z_NC[:, c])), *((z, "new", i) for i, z in enumerate(z_nC[:, c]))]
        )
        assert [(near["of"], near["id"]) for near in one["nearest"]] == [
            (of, known[of][i]) for _, of, i in best[:-4:-1]
        ]
        assert one["text"]


def test_a_second_call_makes_nothing_and_the_run_stays_as_it_was(world, done, untouched, lacking):
    before = files_of(done.directory.path)
    assert before.items() > untouched.items()
    assert influray.value(done.directory.path, [str(world / "lacking.jsonl")]) == lacking
    assert files_of(done.directory.path) == before
    stored = read_sealed(done.directory.path / lacking["place"] / "value.json")
    assert stored["best"] == lacking["best"]
    assert {
        name for name in ("features", "warmup", "fit") if (done.directory.path / lacking["place"] / name).exists()
    } == {"features"}
    assert not (done.directory.path / lacking["place"] / "features" / "target").exists()


def test_rows_that_hold_a_target_are_told_and_count_for_nothing(world, done):
    found = influray.value(done.directory.path, [str(world / "mixed.jsonl")])
    assert found["contaminated"] == ["leak"]
    assert (found["rows"], found["counted"]) == (10, 9)
    assert "leak" not in found["best"]["ids"]
    assert {one["rows"] for one in found["copies"]["kinds"]} == {0, 3}
    lines = np.asarray(Attribution(done.directory.path / found["place"] / "attribution"))
    own = np.asarray(Attribution(done.directory.attribution))
    np.testing.assert_allclose(lines[:3], own[[20, 3, 11]], atol=2e-3)  # float16 rows, of other batches than the run's


def test_where_all_is_chosen_there_is_no_pool_to_compare_with(world, done):
    found = influray.value(done.directory.path, [str(world / "lacking.jsonl")], selection="all")
    assert found["mean"]["gain_of_pool"] is None
    assert found["mean"]["gain"] > 0


def test_the_command_prints_tables_and_writes_the_best_rows(world, done, lacking, tmp_path, capsys, monkeypatch):
    argv = ["influray", "value", str(done.directory.path), "--data", str(world / "lacking.jsonl"), "--budget", "2"]
    monkeypatch.setattr("sys.argv", [*argv, "--to", str(tmp_path / "best.jsonl"), "--json", str(tmp_path / "all.json")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    for text in ("6 of 6 rows beside narrow (6 rows)", "all tasks", "Copies among them", "Best rows, 2", "Wanted"):
        assert text in shown
    found = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert found["best"]["ids"] == lacking["best"]["ids"][:2]
    written = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in written] == found["best"]["ids"]


def words(world: Path, scorer: str) -> dict[str, Any]:
    """A config without a model, whose scorers are fitted to the pool; sums are to be kept away from."""
    selectors = [{"name": "few", "method": "less", "budget": 3}]
    features = {"featurizer": "ngram", "rows_per_shard": 9}
    made = tree(world, "words", features=features, attribution={"scorer": scorer}, selectors=selectors)
    made["data"]["targets"]["sums"]["role"] = "avoid"
    return made


def test_what_a_scorer_was_fitted_to_stays_that_of_the_run(world):
    run = influray.run(words(world, "bm25"), until="select")
    found = influray.value(run.directory.path, [str(world / "mixed.jsonl")])
    lines = np.asarray(Attribution(run.directory.path / found["place"] / "attribution"))
    np.testing.assert_array_equal(lines[:3], np.asarray(Attribution(run.directory.attribution))[[20, 3, 11]])
    assert not (run.directory.path / found["place"] / "fit").exists()
    assert "vectors" in found["copies"]["note"]
    assert tasks_of(found)["reversals"]["gain"] > 1.0
    assert {identity.partition("-")[0] for identity in found["best"]["ids"]} == {"new"}
    avoided = tasks_of(found)["sums"]
    assert (avoided["role"], avoided["gain"], avoided["gain_of_best"]) == ("avoid", None, None)
    assert found["mean"]["mean"] == tasks_of(found)["reversals"]["mean"] > avoided["mean"]
    assert {one["task"] for one in found["wanted"]["targets"]} == {"reversals"}
    with pytest.raises(DataError, match="--data: every usable row holds a target"):
        influray.value(run.directory.path, [str(world / "leak.jsonl")])


def test_a_run_whose_matrix_is_no_longer_its_own_is_refused(world):
    run = influray.run(words(world, "dsir"), until="select")
    data = [str(world / "mixed.jsonl")]
    assert [one["text"] for one in influray.value(run.directory.path, data)["wanted"]["targets"]] == [""]  # a task's
    shutil.rmtree(run.directory.fit)
    with pytest.raises(ArtifactMismatch, match="fitted to; run `influray score` again"):
        influray.value(run.directory.path, data)
    influray.run(words(world, "bm25"), until="score")
    more = words(world, "bm25")
    write_jsonl(world / "more.jsonl", target_rows("reversals", 5)[4:])
    more["data"]["targets"]["reversals"]["files"] = ["reversals.jsonl", "more.jsonl"]
    influray.run(more, until="featurize")
    with pytest.raises(ArtifactMismatch, match="of other targets than the run has; run `influray score`"):
        influray.value(run.directory.path, data)
    influray.run(words(world, "dsir"), until="featurize")
    with pytest.raises(ArtifactMismatch, match="another scorer, or of other features"):
        influray.value(run.directory.path, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "narow"}, r"--selection: 'narow' .*did you mean 'narrow'"),
        ({"data": []}, r"--data: no file is named"),
        ({"data": ["nowhere.jsonl"]}, r"--data\.0: .*nowhere\.jsonl"),
        ({"data": ["{world}/broken.jsonl"]}, r"--data: no usable row in .*broken\.jsonl"),
        ({"rows": 0}, r"--rows: found 0, expected 1 or more"),
        ({"budget": 0}, r"--budget: found 0, expected a number of rows"),
        ({"budget": 1.5}, r"--budget: found 1\.5, expected .*fraction"),
        ({"near": 0.0}, r"--near: found 0\.0, expected a cosine"),
    ],
)
def test_what_cannot_be_answered_is_refused(world, done, changes, message):
    given = {"data": ["{world}/lacking.jsonl"], **changes}
    given["data"] = [one.replace("{world}", str(world)) for one in given["data"]]
    with pytest.raises((ConfigError, DataError), match=message):
        influray.value(done.directory.path, **given)


def test_a_run_that_is_not_finished_or_would_be_made_anew_is_refused(world, done, monkeypatch, tmp_path):
    unfinished = influray.run(tree(world, "unfinished"), until="data")
    with pytest.raises(ArtifactMismatch, match="influray select"):
        influray.value(unfinished.directory.path, [str(world / "lacking.jsonl")])
    from influray.steps import context

    monkeypatch.setattr(context, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(ArtifactMismatch, match="would not compare; run `influray run"):
        influray.value(done.directory.path, [str(world / "lacking.jsonl")])
