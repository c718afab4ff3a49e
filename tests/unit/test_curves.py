"""Budget curves of a run: what is committed, what a selector says when asked again, and readable refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from influray.cli import main
from influray.plugins import permit
from influray.protocols import ArtifactMismatch, ConfigError, Selection, SelectionProblem, Selector
from influray.report.curve_sheet import knees, numbers_of, rechecks, write_curves
from influray.report.curves import budget_curves
from influray.runtime.selecting import select_and_write
from influray.selectors.api import select
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory
from tests.unit.synthetic_run import TASKS, build_run
from tests.unit.test_report import Page, copy_of


class Shifty(Selector):
    """Chooses other rows for every budget: what a set-valued method may do."""

    def select(self, problem: SelectionProblem) -> Selection:
        n = problem.budget
        rows = np.roll(problem.attribution.rows, -n)[:n]
        return Selection(rows, np.full(n, np.nan), np.full(n, -1))


class Picky(Selector):
    """Takes one budget only, as limits can force."""

    def select(self, problem: SelectionProblem) -> Selection:
        if problem.budget != 24:
            raise ConfigError(f"constraints: {problem.budget} rows cannot be had")
        return Selection(problem.attribution.rows[:24], np.full(24, np.nan), np.full(24, -1))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("curves") / "a-run", evaluated=False)


def with_method(run: RunDirectory, folder: Path, method: str) -> RunDirectory:
    copy = copy_of(run, folder)
    tree = yaml.safe_load(copy.config_path.read_text())
    tree["selectors"][0]["method"] = method
    copy.write_config(yaml.safe_dump(tree))
    select_and_write(copy.path, tree["selectors"][0], "e" * 64)
    return copy


def test_the_curves_end_with_the_committed_selections(run):
    found = budget_curves(run.path)
    assert [one.name for one in found] == ["bids", "less", "random"]
    assert {int(one.curve.budget_M[-1]) for one in found} == {one.examples for one in found} == {24}
    assert {(one.recheck.budget, one.recheck.same, one.recheck.compared) for one in found} == {(12, 12, 12)}
    assert "the first 12 rows are the same" in rechecks(found)[0]
    assert sorted(path.name for path in (run.path / "selection").iterdir()) == ["bids", "less", "random"]


@pytest.mark.parametrize("budget", [60, 0.5])
def test_a_larger_budget_continues_the_curve(run, budget):
    (found,) = budget_curves(run.path, "bids", budget)
    assert (found.examples, int(found.curve.budget_M[-1])) == (24, 60)
    assert (found.recheck.budget, found.recheck.same, found.recheck.compared) == (60, 24, 24)
    attribution = Attribution(run.attribution)
    rows = select(run.attribution, None, 60).rows
    z_nT = (attribution.gather(rows) - attribution.stats.mean_T) / np.where(
        attribution.stats.used_T, attribution.stats.std_T, np.nan
    )
    aid = [np.nanmean(z_nT[:, [g == task for g in attribution.groups]]) for task in TASKS]
    assert found.curve.macro[-1] == pytest.approx(np.mean(aid), rel=1e-5)


def test_a_method_that_chooses_otherwise_for_another_budget_is_told_apart(run, tmp_path):
    permit(["tests.unit.test_curves:Shifty"])
    copy = with_method(run, tmp_path, "tests.unit.test_curves:Shifty")
    (found,) = budget_curves(copy.path, "bids")
    assert found.recheck.same == 0
    assert "not the method's choice" in rechecks([found])[0]


def test_a_budget_that_a_method_refuses_is_said_and_ends_only_what_asked_for_it(run, tmp_path):
    permit(["tests.unit.test_curves:Picky"])
    copy = with_method(run, tmp_path, "tests.unit.test_curves:Picky")
    (found,) = budget_curves(copy.path, "bids")
    assert "12 rows cannot be had" in rechecks([found])[0]
    with pytest.raises(ConfigError, match="--curve-budget: selection bids for 30 examples: constraints: 30 rows"):
        budget_curves(copy.path, "bids", 30)
    assert not (copy.path / "selection" / ".curve-bids").exists()


def test_page_and_numbers_are_written_and_repeat(run, tmp_path):
    copy = copy_of(run, tmp_path)
    found = budget_curves(copy.path)
    page, numbers = write_curves(copy.path, found)
    first = page.read_bytes(), numbers.read_bytes()
    assert (page.name, numbers.name) == ("curves.html", "curves.json")
    tree = json.loads(first[1])["selections"]["bids"]
    assert tree["examples"] == found[0].curve.budget_M.tolist()
    assert {len(tree[name]) for name in ("tokens", "coverage", "worst_aid", "worst_task")} == {len(tree["examples"])}
    assert set(tree["tasks"]) == set(TASKS)
    shown = Page(first[0].decode())
    assert "Coverage" in shown.text
    assert not [tag for tag, _ in shown.elements if tag in ("script", "link", "img")]
    write_curves(copy.path, budget_curves(copy.path))
    assert (page.read_bytes(), numbers.read_bytes()) == first


def test_the_tables_name_every_budget_and_mark_the_knees(run):
    one = budget_curves(run.path, "less")[0]
    full, few = numbers_of(one), numbers_of(one, few=True)
    assert [row[0] for row in full.rows] == [str(n) for n in one.curve.budget_M]
    assert set(few.rows) < set(full.rows)
    for knee, name in ((one.coverage_knee, "coverage"), (one.worst_knee, "worst AID")):
        marked = [row[0] for row in few.rows if row[-1] in (name, "both")]
        assert marked == ([] if knee.index is None else [str(one.curve.budget_M[knee.index])])
    assert [table.rows[0][0] for table in knees([one])] == ["less", "less"]


def test_the_worst_task_is_judged_from_as_many_rows_as_there_are_tasks(run):
    for one in budget_curves(run.path):
        assert one.curve.budget_M[one.first - 1] < len(one.curve.tasks) <= one.curve.budget_M[one.first]
        assert one.worst_peak >= one.first
        assert one.worst_knee.index is None or one.worst_knee.index >= one.first


def test_a_run_without_what_a_curve_needs_names_the_step(run, tmp_path):
    copy = copy_of(run, tmp_path / "a")
    shutil.rmtree(copy.path / "attribution")
    with pytest.raises(ArtifactMismatch, match="influray score"):
        budget_curves(copy.path)
    copy = copy_of(run, tmp_path / "b")
    shutil.rmtree(copy.path / "selection")
    with pytest.raises(ArtifactMismatch, match="influray select"):
        budget_curves(copy.path)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        budget_curves(tmp_path)


@pytest.mark.parametrize("budget", [0, -3, 121, 1.5, 0.0, 0.001, float("nan")])
def test_a_budget_out_of_range_is_refused(run, budget):
    with pytest.raises(ConfigError, match="--curve-budget: "):
        budget_curves(run.path, budget=budget)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--curve", "--curve-selection", "bidz"], ["--curve-selection", "bidz", "did you mean 'bids'", "less"]),
        (["--curve", "--curve-budget", "much"], ["--curve-budget", "'much'", "fraction"]),
        (["--curve", "--curve-budget", "1.5"], ["--curve-budget", "1.5", "(0, 1]"]),
        (["--curve", "--curve-budget", "0"], ["--curve-budget", "0 examples"]),
        (["--curve-budget", "0.3"], ["--curve-budget", "add --curve"]),
        (["--curve-selection", "bids"], ["--curve-selection", "add --curve"]),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(run, tmp_path, monkeypatch, capsys, arguments, said):
    copy = copy_of(run, tmp_path)
    before = (copy.path / "run.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["influray", "select", str(copy.config_path), *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("influray: ") == 1
    for text in said:
        assert text in captured.err
    assert (copy.path / "run.json").read_bytes() == before
