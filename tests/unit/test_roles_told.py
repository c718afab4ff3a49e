"""Tasks to protect and to avoid in report, comparison and explorer: apart from what is sought, and in no sum over it."""

from __future__ import annotations

import numpy as np
import pytest

from influray.protocols import ArtifactMismatch
from influray.report.collect import collect
from influray.report.compare import compare
from influray.report.compare_sheet import compare_sheet
from influray.report.curves import budget_curves
from influray.report.evaluations import tuned
from influray.report.explorer.data import overview
from influray.report.page import write_report
from influray.store.attribution import Attribution
from influray.store.selection import read_selection
from tests.unit.synthetic_run import TASKS, build_run
from tests.unit.test_report import Page

ROLES = {"ordering": "protect", "facts": "avoid"}
SOUGHT = [task for task in TASKS if task not in ROLES]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("roles") / "a-run", roles=ROLES)


def mean_influence(run, name: str, task: str) -> float:
    matrix = Attribution(run.attribution)
    score_NT = np.asarray(matrix, np.float64)
    mine = [j for j, group in enumerate(matrix.groups) if group == task and matrix.stats.used_T[j]]
    z_NT = (score_NT[:, mine] - score_NT[:, mine].mean(axis=0)) / score_NT[:, mine].std(axis=0)
    return float(z_NT[read_selection(run.selection(name)).rows].mean())


def test_balance_is_over_what_is_sought_and_the_others_stand_by_themselves(run):
    data = collect(run.path)
    assert {task.name: task.role for task in data.tasks} == {**dict.fromkeys(SOUGHT, "seek"), **ROLES}
    for one in data.selections:
        assert one.balance is not None
        assert list(one.balance.aid) == SOUGHT
        assert {task: limit.role for task, limit in one.limited.items()} == ROLES
        for task, limit in one.limited.items():
            assert limit.mean == pytest.approx(mean_influence(run, one.name, task))
        assert one.limited["ordering"].mean >= 0
        assert one.limited["facts"].mean <= 0
    assert {curve.curve.tasks for curve in data.curves} == {tuple(SOUGHT)}
    assert {curve.curve.tasks for curve in budget_curves(run.path, "bids")} == {tuple(SOUGHT)}


def test_macro_losses_are_over_what_is_sought(run):
    data = collect(run.path)
    for one in data.tuned:
        assert set(one.loss) == set(TASKS)
        assert one.macro_loss.mean == pytest.approx(np.mean([one.loss[task].mean for task in SOUGHT]))
        assert one.worst_loss_task in SOUGHT
        assert one.worst_exact_task in SOUGHT
        assert one.roles == ROLES
    (told,) = [sentence for sentence in data.finding if "not sought" in sentence]
    for role in ("ordering (protect)", "facts (avoid)"):
        assert role in told


def test_the_pages_tell_the_roles(run):
    words = Page(write_report(run.path).read_text(encoding="utf-8")).words
    assert "sums, reversal, ordering (protect), facts (avoid)" in words
    assert "For tasks to protect and to avoid no row is chosen" in words
    found = overview(run.path)
    assert [task["name"] for task in found["tasks"]] == SOUGHT
    assert {target["task"] for target in found["targets"]} == {0, 1}
    for one in found["selections"]:
        assert {task: limit["role"] for task, limit in one["roles"].items()} == ROLES
        assert len(one["at"]["aid"][0]) == len(SOUGHT)


def test_a_comparison_has_them_in_tables_of_their_own(run, tmp_path):
    found = compare([run.path])
    tables = {table.title: table for table in compare_sheet(found).tables}
    limits = tables["Tasks to protect and to avoid, mean standardised influence"]
    assert [row[:2] for row in limits.rows] == list(ROLES.items())
    losses = tables["Loss on tasks to protect and to avoid"]
    assert losses.columns == ("tuned on", "ordering (protect)", "facts (avoid)")
    aid = next(table for title, table in tables.items() if title.startswith("AID by task"))
    assert [row[0] for row in aid.rows] == SOUGHT
    plain = found.as_plain()["entries"][0]
    assert {task: limit["role"] for task, limit in plain["selection"]["roles"].items()} == ROLES
    assert plain["tuned"]["roles"] == ROLES

    other = compare([run.path, build_run(tmp_path / "b-run").path])
    tables = {table.title: table for table in compare_sheet(other).tables}
    (row, _) = tables["Tasks to protect and to avoid, mean standardised influence"].rows
    of = dict(zip(tables["Tasks to protect and to avoid, mean standardised influence"].columns, row, strict=True))
    assert of["a-run/bids"] != of["b-run/bids"] == "–"


def test_results_of_none_of_the_tasks_that_are_sought_are_refused():
    with pytest.raises(ArtifactMismatch, match="evaluation/bids: of none of the tasks that are sought"):
        tuned("bids", "c0", {0: {"a": {"loss": 1.0}}}, "exact_match", {"a": "avoid"})
