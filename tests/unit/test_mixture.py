"""Mixture: the lasso by another route and with a planted answer, the shares of selections counted by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from influray import pipeline
from influray.cli import app as cli
from influray.data.catalogue import Catalogue
from influray.protocols import ConfigError
from influray.store.artifact import read_json
from influray.store.selection import read_table
from influray.validation.mixture import lasso_weights, task_weights
from tests.reference.lasso import projected_lasso
from tests.unit.asked_run import build_asked_run
from tests.unit.synthetic_run import build_run


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 0.3, 0.9])
def test_coordinate_descent_finds_the_minimum_of_projected_gradient(seed, penalty):
    random = np.random.default_rng(seed)
    mean_SF = random.standard_normal((5, 12)) + random.standard_normal(12)  # alike, as sources of one pool are
    gram_SS, toward_S = mean_SF @ mean_SF.T, mean_SF @ random.standard_normal(12)
    penalty *= max(float(toward_S.max()), 0.0)
    found_S = lasso_weights(gram_SS, toward_S, penalty)
    assert found_S == pytest.approx(projected_lasso(gram_SS, toward_S, penalty), abs=1e-6)
    slope_S = gram_SS @ found_S - toward_S + penalty
    assert (slope_S >= -1e-7).all()
    assert np.abs(found_S * slope_S).max() < 1e-7


def test_a_planted_mixture_is_found_and_a_source_that_points_away_has_none():
    random = np.random.default_rng(0)
    mean_SF = np.linalg.qr(random.standard_normal((40, 4)))[0].T
    mean_SF[3] = -mean_SF[0] + 0.1 * mean_SF[3]
    target_CF = 0.6 * mean_SF[0] + 0.2 * mean_SF[1] + 0.02 * random.standard_normal((30, 40))
    share_S = task_weights(mean_SF @ mean_SF.T, mean_SF @ target_CF.T)
    assert share_S == pytest.approx([0.75, 0.25, 0, 0], abs=0.02)
    assert share_S.sum() == pytest.approx(1)
    assert not task_weights(mean_SF @ mean_SF.T, -np.abs(mean_SF @ target_CF.T)).any()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return build_asked_run(tmp_path_factory.mktemp("mixed"))


def test_shares_of_a_selection_are_those_of_its_rows(asked):
    found = pipeline.mixture(asked.directory.path, repeats=4)
    assert set(found.weights) == {"lasso", *(one.name for one in asked.config.selectors)}
    facts = catalogue_facts(asked)
    for selector in asked.config.selectors:
        rows = read_table(asked.directory.selection(selector.name))["row"].to_pylist()
        counts = Counter(facts["source"][row] for row in rows)
        tokens = sum(facts["tokens"][row] for row in rows)
        one = found.weights[selector.name]
        for s, source in enumerate(found.sources):
            assert one.share_S[s] == pytest.approx(counts[source] / len(rows))
            own = sum(facts["tokens"][row] for row in rows if facts["source"][row] == source)
            assert one.token_share_S is not None
            assert one.token_share_S[s] == pytest.approx(own / tokens)
            assert 0 <= one.low_S[s] <= one.share_S[s] <= one.high_S[s] <= 1
    assert (found.weights["bids"].high_S > found.weights["bids"].low_S).any()
    assert found.weights["lasso"].share_S.sum() == pytest.approx(1)


def catalogue_facts(run):
    return Catalogue(run.directory.data("pool")).facts("source", "tokens")


def test_a_budget_takes_the_first_rows_of_a_selection_and_the_same_seed_gives_the_same_intervals(asked):
    first = pipeline.mixture(asked.directory.path, 2, repeats=3)
    rows = read_table(asked.directory.selection("bids"))["row"].to_pylist()[:2]
    source_N = catalogue_facts(asked)["source"]
    assert first.weights["bids"].rows_S is not None
    assert dict(zip(first.sources, first.weights["bids"].rows_S.tolist(), strict=True)) == {
        source: [source_N[row] for row in rows].count(source) for source in first.sources
    }
    assert first.as_plain() == pipeline.mixture(asked.directory.path, 2, repeats=3).as_plain()
    assert "interval" not in str(pipeline.mixture(asked.directory.path, 2, repeats=0).as_plain())


def test_a_matrix_without_vectors_has_no_lasso_and_says_so(tmp_path):
    run = build_run(tmp_path)
    found = pipeline.mixture(tmp_path, repeats=0)
    assert "lasso" not in found.weights
    assert found.notes[0].startswith("no lasso: ")
    assert set(found.weights) == {path.name for path in run.selection("x").parent.iterdir()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 0}, "--budget: found 0, expected 1 to"),
        ({"budget": 10**6}, "--budget"),
        ({"repeats": 1}, "--repeats"),
    ],
)
def test_wrong_numbers_are_refused(asked, given, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.mixture(asked.directory.path, **given)


def test_what_is_printed_is_what_is_written(asked, tmp_path, capsys, monkeypatch):
    path = tmp_path / "mixture.json"
    monkeypatch.setattr(
        "sys.argv", ["influray", "mixture", str(asked.directory.path), "--repeats", "0", "--json", str(path)]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    text = capsys.readouterr().out
    written = read_json(path)
    assert written == pipeline.mixture(asked.directory.path, repeats=0).as_plain()
    for name in written["weights"]:
        assert f"Shares of sources: {name}" in text
