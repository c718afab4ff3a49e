"""`influray validate` on a tiny world: what it leaves, what is shared and kept, what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import influray
from influray.cli import main
from influray.data.catalogue import Catalogue
from influray.protocols import ArtifactMismatch, ConfigError, DamagedArtifact, DataError
from influray.report.explorer.data import chosen_rows
from influray.report.validation import Validation
from influray.store.artifact import hash_file, read_sealed
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory
from influray.validation import draws
from tests.killing import kill_when
from tests.reference import lds_loop
from tests.tiny import write_tested_world

pytestmark = [pytest.mark.ray, pytest.mark.endurance]

SMALL: dict[str, Any] = {
    "lds.subsets": 8,
    "lds.share": 0.5,
    "tune.warmup_ratio": 0.0,
    "remove": {"rows": 4, "draws": 2, "tasks": ["sums"]},
    "keep": {"rows": 4, "draws": 2, "scorer": "dot"},
    "leave_one_out": {"candidates": 16, "groups": 8, "steps": 2},
}
ALL = ["lds", "remove", "keep", "leave_one_out"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory, ray_cluster) -> influray.pipeline.Run:
    """A run up to the score, of 24 rows and two tasks with three targets and three tests each."""
    folder = write_tested_world(tmp_path_factory.mktemp("world"), 24)
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
    loop = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8, "device_batch_size": 8}
    targets = {t: {"files": f"{t}.jsonl", "test": f"{t}-test.jsonl"} for t in ("sums", "reversals")}
    config = {
        "run_dir": str(folder / "run"),
        "model": {"base": str(folder / "model"), "lora": lora},
        "data": {"root": str(folder), "pool": "pool.jsonl", "max_tokens": 128, "targets": targets},
        "warmup": {"fraction": 0.5, **loop},
        "features": {"projector": {"name": "rademacher", "dimension": 32}, "rows_per_shard": 12},
        "selectors": [{"name": "bids", "method": "bids", "budget": 6}],
        "tune": loop,
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
    }
    return influray.run(config, until="score")


@pytest.fixture(scope="module")
def validated(scored) -> Validation:
    return influray.validate(scored.directory.path, {**SMALL, "experiments": ALL})


def files_of(folder: Path, *parts: str) -> dict[str, str]:
    """Path -> hash of the files below parts of a run directory."""
    paths = [path for part in parts for path in folder.glob(f"{part}/**/*") if path.is_file()]
    return {str(path.relative_to(folder)): hash_file(path) for path in paths if not path.name.startswith(".")}


def test_every_scorer_is_judged_on_the_same_retrainings(scored, validated):
    found = validated.results["lds"]
    names = [one["name"] for one in found["scorers"]]
    assert names[0] == "run"
    assert {"dot", "whitened", "grand", "loss", "representation", "bm25", "length", "random"} <= set(names)
    assert len(found["retrainings"]) == len(set(found["retrainings"])) == 16
    for one in found["scorers"]:
        for split in ("target", "test"):
            low, high = one[split]["interval"]
            assert -1 <= low <= one[split]["value"] <= high <= 1, one["name"]
            assert set(one[split]["tasks"]) == {"sums", "reversals"}
    assert found["scorers"][0]["target"]["less_own"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert -1 <= found["seeds"]["target"]["halves"] <= 1


def test_the_score_of_the_runs_own_matrix_is_that_of_a_plain_loop(scored, validated):
    directory = scored.directory
    matrix, tasks = Attribution(directory.attribution), Catalogue(directory.data("target")).groups
    score_NT, rows = matrix.gather(matrix.rows), matrix.rows
    subsets = [draws.subset(rows, 0.5, 0, number) for number in range(8)]
    results = [
        read_sealed(directory.validation / "retrainings" / f"{name}.json")
        for name in validated.results["lds"]["retrainings"]
    ]
    losses = [[one["losses"]["target"] for one in results if one["seed"] == seed] for seed in (0, 1)]
    expected = lds_loop.lds(score_NT, [np.searchsorted(rows, one) for one in subsets], losses, tasks)
    found = validated.results["lds"]["scorers"][0]["target"]["tasks"]
    assert {task: one["value"] for task, one in found.items()} == pytest.approx(expected)


def test_removal_is_measured_beside_random_rows_of_as_many_tokens(scored, validated):
    for name, lines in (("remove", ["sums"]), ("keep", ["sums", "reversals"])):
        found = validated.results[name]
        assert [one["task"] for one in found["lines"]] == lines
        longest = Catalogue(scored.directory.data("pool")).facts("tokens")["tokens"].max()
        for one in found["lines"]:
            assert all(abs(drawn - one["tokens"]["best"]) <= longest for drawn in one["tokens"]["random"])
            for kind in ("best", "worst"):
                low, high = one[kind]["own"]["interval"]
                assert low <= one[kind]["own"]["value"] <= high
                assert one[kind]["own"] == one[kind]["tasks"][one["task"]]
                assert one[kind]["others"]["value"] == pytest.approx(
                    np.mean([e["value"] for task, e in one[kind]["tasks"].items() if task != one["task"]])
                )


def test_leaving_rows_out_changes_the_losses_a_little(validated):
    found = validated.results["leave_one_out"]
    assert (found["rows"], found["groups"], len(found["retrainings"])) == (16, 8, 18)
    assert 0 < found["mean_effect"]["target"] < 1


def test_the_runs_own_artifacts_stay_as_they_were_and_a_second_time_nothing_is_done(scored, validated, monkeypatch):
    folder = scored.directory.path
    own = files_of(folder, "attribution", "features", "data", "warmup")
    before = files_of(folder, "validate")
    assert scored.directory.read()["steps"]["validate"]["carried_out"] > 0
    monkeypatch.setattr("influray.runtime.cluster.connect", None)  # no cluster is needed
    again = influray.validate(folder, {**SMALL, "experiments": ALL})
    assert again.results == validated.results
    assert files_of(folder, "validate") == before
    assert files_of(folder, "attribution", "features", "data", "warmup") == own
    facts = scored.directory.read()["steps"]["validate"]
    assert facts["carried_out"] == 0
    assert facts["retrainings"] <= 16 + 8 + 16 + 18


def test_what_was_interrupted_or_damaged_is_made_again_to_the_same_bytes(scored, validated, tmp_path):
    before = files_of(scored.directory.path, "validate")
    copy = tmp_path / "copy"
    shutil.copytree(scored.directory.path, copy)
    made = sorted((copy / "validate" / "retrainings").glob("*.json"))
    for path in made[:5]:
        path.unlink()  # as after a kill
    made[6].write_bytes(made[6].read_bytes()[:-30])
    made[7].write_bytes(b"")
    (copy / "validate" / "lds.json").write_text("{}")
    part = next((copy / "validate" / "scorers" / "dot" / "attribution").glob("part-*.arrow"))
    part.write_bytes(part.read_bytes()[:-64])
    influray.validate(copy, {**SMALL, "experiments": ALL})
    found = files_of(copy, "validate")
    retrained = {name: digest for name, digest in before.items() if "retrainings" in name}
    assert {name: digest for name, digest in found.items() if "retrainings" in name} == retrained
    for name in ALL:
        assert found[f"validate/{name}.json"] == before[f"validate/{name}.json"]
    again = influray.validate(copy, {**SMALL, "experiments": ["lds"]})
    (copy / "validate" / "keep.json").unlink()
    with pytest.raises(DamagedArtifact, match=r"keep\.json: gone.*`influray validate` makes it again"):
        Validation.there(RunDirectory(copy))
    assert list(again.results) == ["lds"]


def test_more_subsets_keep_the_retrainings_of_those_before(scored, validated):
    found = influray.validate(scored.directory.path, {**SMALL, "lds.subsets": 9, "scorers": ["length", "random"]})
    assert scored.directory.read()["steps"]["validate"]["carried_out"] == 2
    assert found.results["lds"]["retrainings"][:16] == validated.results["lds"]["retrainings"]
    assert [one["name"] for one in found.results["lds"]["scorers"]] == ["run", "length", "random"]
    influray.validate(scored.directory.path, {**SMALL})  # as the other tests find it


def test_a_scorer_of_ones_own_and_the_features_it_needs(scored, validated):
    folder = scored.directory.path
    plain = {"name": "plain", "scorer": "gram", "options": {"ridge": 1.0}, "features": {"direction": "sgd"}}
    found = influray.validate(folder, {**SMALL, "scorers": ["datainf", plain]})
    assert [one["name"] for one in found.results["lds"]["scorers"]] == ["run", "datainf", "plain"]
    assert len(list((folder / "validate" / "features").glob("gradient-*"))) == 2
    influray.validate(folder, {**SMALL})


def test_the_command_line_prints_tables_and_the_report_shows_them(scored, validated, monkeypatch, capsys):
    folder = scored.directory.path
    influray.run(folder / "config.yaml", until="report-only")
    given = ["validate", str(folder), "--subsets", "8", "--share", "0.5", "--set", "tune.warmup_ratio=0"]
    monkeypatch.setattr(sys, "argv", ["influray", *given])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "representation" in printed
    assert "8 subsets of 12 of 24 rows" in printed
    page = scored.directory.report.read_text(encoding="utf-8")
    assert 'id="validation"' in page
    assert "Leave one out" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lds.subsets": 3}, r"validate\.lds\.subsets: .*8 are enough"),
        ({"lds.share": 1.0}, r"validate\.lds\.share: .*between 0 and 1"),
        ({"lds.share": 0}, r"validate\.lds\.share: .*nothing to train on"),
        ({"scorers": ["dott"]}, r"validate\.scorers: no scorer is called 'dott'; did you mean 'dot'"),
        ({"scorers": [{"name": "x", "features": {"direktion": "sgd"}}]}, r"did you mean 'direction'"),
        ({"scorers": [{"name": "x", "options": {"similarty": "dot"}}]}, r"similarty"),
        ({"experiments": ["ldss"]}, r"validate\.experiments"),
        ({"tune": {"step": 4}}, r"validate\.tune: step: unknown key; did you mean 'steps'"),
        ({"experiments": ["keep"], "keep": {"rows": 4, "draws": 2}}, r"validate\.tune: of keep .*warmup_ratio: 0"),
        ({"seeds": [0], "experiments": ["keep"]}, r"validate\.seeds: keep .*2 are enough"),
        ({"experiments": ["remove"], "remove.draws": 1}, r"validate\.remove\.draws: .*2 are enough"),
        ({"experiments": ["remove"], "remove.tasks": ["sum"]}, r"no task is called 'sum'"),
        ({"experiments": ["remove"], "remove.rows": 13}, r"validate\.remove\.rows: 13 .*12"),
        ({"experiments": ["keep"], "keep.scorer": "random"}, r"validate\.keep\.scorer: random rows"),
        ({"experiments": ["keep"], "keep.scorer": "bm"}, r"validate\.keep\.scorer: 'bm' is none of"),
        ({"experiments": ["leave_one_out"]}, r"validate\.leave_one_out\.candidates: 128, .*24 are the most"),
        (
            {"experiments": ["leave_one_out"], "leave_one_out": {"candidates": 24, "groups": 8, "steps": 2}},
            r"set steps to 3 or candidates to 16",
        ),
    ],
)
def test_wrong_settings_are_refused_with_what_would_be_right(scored, settings, message):
    with pytest.raises((ConfigError, ArtifactMismatch), match=message):
        influray.validate(scored.directory.path, settings)


def test_runs_that_cannot_be_validated_are_refused(scored, tmp_path):
    with pytest.raises(ConfigError, match="no run lies here"):
        influray.validate(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(scored.directory.path, copy, ignore=shutil.ignore_patterns("attribution", "validate", "run.json"))
    with pytest.raises(ArtifactMismatch, match=r"influray (score|run)"):
        influray.validate(copy)


@pytest.mark.endurance
def test_a_driver_that_is_killed_goes_on_and_ends_in_the_same_bytes(scored, validated, tmp_path, ray_cluster):
    copy = tmp_path / "killed"
    shutil.copytree(scored.directory.path, copy, ignore=shutil.ignore_patterns("validate"))
    sets = ["--set", "lds.share=0.5", "--set", "tune.warmup_ratio=0", "--subsets", "8", "--scorers", "length,random"]
    command = [sys.executable, "-m", "influray", "validate", str(copy), *sets, "--address", ray_cluster.address]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_when(process, lambda: len(list((copy / "validate" / "retrainings").glob("*.json"))) >= 3)
    assert not (copy / "validate" / "lds.json").exists()
    influray.validate(
        copy, {"lds.subsets": 8, "lds.share": 0.5, "tune.warmup_ratio": 0.0, "scorers": ["length", "random"]}
    )
    found = files_of(copy, "validate/retrainings")
    expected = files_of(scored.directory.path, "validate/retrainings")
    assert {name: expected.get(name) for name in found} == found
    assert len(found) == 16


def test_recall_finds_what_the_runs_own_matrix_places_first(scored, validated):
    matrix = Attribution(scored.directory.attribution)
    member_T = np.array([group == "sums" for group in matrix.groups])
    score_NT = matrix.gather(matrix.rows)[:, member_T].astype(np.float64)
    score_N = ((score_NT - score_NT.mean(axis=0)) / score_NT.std(axis=0)).mean(axis=1)
    first = matrix.rows[np.argsort(-score_N)[:4]]
    ids = np.asarray(Catalogue(scored.directory.data("pool")).facts("id")["id"], object)[first].tolist()
    settings = {**SMALL, "experiments": ["recall"], "recall": {"k": [2, 4, 9999], "ids": {"sums": ids}}}
    found = influray.validate(scored.directory.path, settings)
    result = found.results["recall"]
    assert (result["k"], result["relevant"], result["retrainings"]) == ([2, 4], {"sums": 4}, [])
    lines = {one["name"]: one["tasks"]["sums"] for one in result["scorers"]}
    best = {"auc": 1.0, "average_precision": pytest.approx(1.0), "reciprocal_rank": 1.0, "recall": [0.5, 1.0]}
    assert lines["run"] == best
    assert all(0 <= line["average_precision"] <= 1 for line in lines.values())
    assert min(line["auc"] for line in lines.values()) < 1
    assert found.tables[0].rows[0][0] == "run"
    influray.validate(scored.directory.path, {**SMALL})


def test_stability_compares_with_other_seeds_and_with_halves_of_the_targets(scored, validated):
    settings = {**SMALL, "experiments": ["stability"]}
    found = influray.validate(scored.directory.path, settings)
    result = found.results["stability"]
    names = ["warmup seed 1", "projection seed 1", "half 1 of the targets", "half 2 of the targets"]
    assert [one["name"] for one in result["variants"]] == names
    assert all(-1 <= one["value"] < 1 for one in result["variants"])
    assert result["variants"][0]["by_target"] != result["variants"][1]["by_target"]
    assert set(result["halves_agree"]) == {"sums", "reversals"}
    (bids,) = result["selectors"]
    assert (bids["rows"], bids["variants"], sum(bids["chosen_in"])) == (6, 5, 6)
    assert len(bids["times"]) == 6
    assert all(1 <= times <= 5 for times in bids["times"])
    influray.run(scored.directory.path / "config.yaml", until="select")
    page = chosen_rows(scored.directory.path, "bids")  # of the explorer and GET /selection
    assert page["variants"] == 5
    assert [row["chosen_in"] for row in page["rows"]] == bids["times"]
    assert set(bids["overlap"]) == set(names)
    assert all(low <= one["value"] <= high for one in result["sources"] for low, high in [one["interval"]])
    before = files_of(scored.directory.path, "validate")
    again = influray.validate(scored.directory.path, settings)
    assert again.results == found.results
    assert files_of(scored.directory.path, "validate") == before
    influray.validate(scored.directory.path, {**SMALL})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiments": ["recall"]}, r"validate\.recall: no task has a known answer; .*expected_sources"),
        ({"experiments": ["recall"], "recall.ids": {"sum": ["x"]}}, r"recall\.ids\.sum: .*did you mean 'sums'"),
        ({"experiments": ["recall"], "recall.ids": {"sums": ["x"]}}, r"no candidate row has the id 'x'"),
        ({"experiments": ["stability"], "stability.selectors": ["bid"]}, r"did you mean 'bids'"),
        (
            {"experiments": ["stability"], "stability": {"halves": False, "warmup_seeds": [0], "projection_seeds": []}},
            r"validate\.stability: nothing varies",
        ),
    ],
)
def test_scores_that_cannot_be_looked_at_are_refused(scored, settings, message):
    with pytest.raises(ConfigError, match=message):
        influray.validate(scored.directory.path, settings)


def test_blame_sets_failing_records_against_passing_ones_and_proves_it_by_removal(scored, validated):
    folder = scored.directory.path.parent
    given: dict[str, Any] = {"selection": "full", "rows": 4, "draws": 2}
    failing, passing = str(folder / "sums.jsonl"), str(folder / "reversals.jsonl")
    report = influray.run(scored.directory.path / "config.yaml", until="report-only").directory.report
    assert "Suspects" not in report.read_text(encoding="utf-8")
    found = influray.blame(scored.directory.path, [failing], [passing], SMALL, **given)
    assert "Suspects" in report.read_text(encoding="utf-8"), "the report is written again"
    result = found.results["blame"]
    # They are the run's own targets, so their influences are its matrix' columns.
    matrix = Attribution(scored.directory.attribution)
    score_NT = matrix.gather(matrix.rows).astype(np.float64)
    z_NT = (score_NT - score_NT.mean(axis=0)) / score_NT.std(axis=0)
    sums_T = np.array([group == "sums" for group in matrix.groups])
    value_N = z_NT[:, sums_T].mean(axis=1) - z_NT[:, ~sums_T].mean(axis=1)
    assert [one["value"] for one in result["worst"]] == pytest.approx(np.sort(value_N)[:4], abs=1e-3)
    for one in result["worst"]:
        assert one["value"] == pytest.approx(value_N[np.searchsorted(matrix.rows, one["row"])], abs=1e-3)
    assert [one["value"] for one in result["sources"]] == sorted(one["value"] for one in result["sources"])
    assert sum(one["rows"] for one in result["sources"]) == result["rows"] == 24
    lines = {(one["split"], one["records"]): one for one in result["removal"]["lines"]}
    assert set(lines) == {("failing", "failing"), ("passing", "passing"), ("test", "sums"), ("test", "reversals")}
    for one in lines.values():
        assert one["value"] == pytest.approx(one["without_random"] - one["without"])
        assert one["interval"][0] <= one["value"] <= one["interval"][1]
    before = files_of(scored.directory.path, "validate")
    assert influray.blame(scored.directory.path, [failing], [passing], SMALL, **given).results == found.results
    assert files_of(scored.directory.path, "validate") == before
    listed = influray.blame(scored.directory.path, [failing], (), SMALL, **given, prove=False)
    assert listed.results["blame"]["removal"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "bid"}, r"--selection: 'bid' .*did you mean 'bids'"),
        ({"rows": 0}, r"--rows: 0 of 24 rows is 0; at least one"),
        ({"rows": 1.0}, r"--rows: 1\.0 of 24 rows is 24; .*one stays"),
        ({"draws": 1}, r"--draws: 1 .*2 are enough"),
        ({"failing": ["nowhere.jsonl"]}, r"--failing\.0: .*nowhere\.jsonl"),
        ({"settings": {"seeds": [0]}}, r"validate\.seeds: blame .*2 are enough"),
    ],
)
def test_blame_refuses_what_it_cannot_answer(scored, changes, message):
    failing = [str(scored.directory.path.parent / "sums.jsonl")]
    given = {"failing": failing, "selection": "full", "rows": 2, **changes}
    with pytest.raises((ConfigError, DataError), match=message):
        influray.blame(scored.directory.path, **given)
