"""Rows that harm: the rule against its words, and each place that lists such rows where there is none."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from influray.ask.answers import Hit, QueryAnswer
from influray.evaluation.harm import NO_HARM, harm_limit
from influray.report.collect import collect
from influray.report.page import render
from influray.report.query_sheet import query_note, query_tables
from influray.store.artifact import ShardStore
from influray.store.attribution import Attribution, attribution_table, commit_attribution
from tests.unit.synthetic_run import build_run

HIT = Hit(row=1, id="a", source="s", influence=-0.5, z=-2.0, norm=1.0, text="text", cut=False, selections=())
ANSWER = QueryAnswer("question", 0.1, 0.0, 0.2, True, None, None, False, (HIT,), (HIT,), None)


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=20), st.floats(-20, 20))
def test_a_row_harms_where_its_influence_is_negative_and_stays_so_standardised(values, offset):
    influence_N = np.array(values) + offset
    mean, std = influence_N.mean(), influence_N.std()
    if std < 1e-6:
        return
    sure_N = np.abs(influence_N) > 1e-6  # rounding decides on what is zero
    found_N = (influence_N - mean) / std < harm_limit(mean, std)
    expected_N = (influence_N < 0) & (influence_N < mean)
    assert (found_N == expected_N)[sure_N & (np.abs(influence_N - mean) > 1e-6)].all()


def test_of_several_columns_zero_influence_is_averaged_as_the_scores_are():
    A_NC = np.random.default_rng(0).normal([1.0, -3.0], [0.1, 2.0], (50, 2))
    mean_C, std_C = A_NC.mean(axis=0), A_NC.std(axis=0)
    zero = float(((0 - mean_C) / std_C).mean())
    assert harm_limit(mean_C, std_C) == pytest.approx(min(zero, 0.0))
    assert harm_limit(-mean_C, std_C) == pytest.approx(min(-zero, 0.0))


@pytest.mark.parametrize(("mean", "std"), [(-1.0, 0.0), (np.zeros(0), np.zeros(0)), (np.zeros(2), np.array([1.0, 0]))])
def test_nothing_harms_where_nothing_can_be_standardised(mean, std):
    assert harm_limit(mean, std) == -np.inf


def test_a_report_says_where_no_row_harms_a_task(tmp_path):
    """A matrix moved up by a constant has the same standardised rows, and none of them harms."""
    run = build_run(tmp_path, evaluated=False, selections=False)
    before, page = collect(run.path), render(collect(run.path))
    assert all(task.harmful for task in before.examples)
    assert NO_HARM not in page
    old = Attribution(run.attribution)
    A_NT, rows_N = old.gather(old.rows), old.rows
    shutil.rmtree(run.attribution)
    store = ShardStore(run.attribution)
    store.commit("all", attribution_table(rows_N, A_NT - 2 * A_NT.min()), {})
    commit_attribution(store, ["all"], {}, old.target_rows, old.target_ids, old.groups)
    after = collect(run.path)
    for one_after, one_before in zip(after.examples, before.examples, strict=True):
        assert [one.row for one in one_after.helpful] == [one.row for one in one_before.helpful]
        assert one_after.harmful == ()
    assert render(after).count(escape(NO_HARM)) == len(after.examples)


@pytest.mark.parametrize("width", [80, 200])
def test_a_query_says_where_no_row_harms(width):
    assert [table.title for table in query_tables(ANSWER.as_plain(), width)][-1] == "rows that harm most"
    assert "harms" not in query_note(ANSWER.as_plain())
    spared = replace(ANSWER, harmful=()).as_plain()
    assert [table.title for table in query_tables(spared, width)] == ["rows that help most"]
    assert NO_HARM[3:-1] in query_note(spared)


def test_the_explorer_says_it_in_the_same_words():
    script = (files("influray.report") / "explorer" / "ask.js").read_text()
    (said,) = re.findall(r'const NO_HARM = "(.*)";', script)
    assert said == NO_HARM
