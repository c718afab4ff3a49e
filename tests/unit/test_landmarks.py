"""Scores carried from landmarks to all rows: against a dense float64 version, refits, and planted answers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from influray.config import parse_config
from influray.protocols import ArtifactMismatch, Columns, ConfigError, DamagedArtifact, DataError, FeatureRows
from influray.scorers.exact_run import ExactRun, all_targets
from influray.scorers.kernel_ridge import RIDGES, RidgeFits, gaussian, median_distance, squared_distances
from influray.scorers.landmarks import Landmarks
from influray.scorers.options import make_scorer
from influray.scorers.propagation import FOLDS, folds, joined, propagating_scorers
from influray.store.arrays import add_arrays
from influray.store.artifact import ShardStore
from influray.store.attribution import Attribution, attribution_table, commit_attribution
from influray.store.moments import column_moments, column_stats
from influray.testing.scorers import taken
from tests.exact_runs import pool_of, write_catalogues, write_exact
from tests.features import made_for, make_rows
from tests.reference.kernel_ridge import kernel_of, median_width, refitted, ridge_prediction

TARGETS = [("v", "sums"), ("w", "reversals"), ("x", "sums"), ("y", "talk")]
COLUMNS = Columns((0, 1, 2, 3), *(tuple(part) for part in zip(*TARGETS, strict=True)))
STORES = made_for(2)


def write(folder: Path, row_E: np.ndarray, exact_ET: np.ndarray) -> str:
    """An exact run whose pool has these rows in this order, each called by its number."""
    targets = TARGETS[: exact_ET.shape[1]]
    return str(write_exact(folder, [str(row) for row in row_E.tolist()], targets, exact_ET).path)


def fitted(scorer: Landmarks, pool: FeatureRows, cuts: int = 3) -> dict[str, np.ndarray]:
    row_E, exact_ET = scorer.exact.matched([str(row) for row in range(len(pool))], COLUMNS)
    start = {"row": row_E, "exact": exact_ET}
    total: dict[str, np.ndarray] = {}
    for part in np.array_split(np.arange(len(pool)), cuts):
        add_arrays(total, scorer.sums(1, taken(pool, part), pool, start))
    return scorer.fit(1, total, pool, start)


def smooth(pool: FeatureRows, seed: int = 0, columns: int = 4) -> np.ndarray:
    """A smooth function of the rows: a few bumps."""
    vector_ND = joined(pool, STORES.weights)
    centre_CD = vector_ND[np.random.default_rng(seed).permutation(len(vector_ND))[: 3 * columns]]
    bumps_NC = kernel_of(vector_ND, centre_CD, 1.0)
    return bumps_NC @ np.random.default_rng(seed + 1).normal(size=(3 * columns, columns))


@pytest.mark.parametrize("seed", range(3))
def test_fits_are_those_of_the_normal_equations_and_what_is_held_out_is_as_by_refitting(seed):
    rng = np.random.default_rng(seed)
    vector_LD, score_LT = rng.normal(size=(37, 5)), rng.normal(size=(37, 3)) + 4
    asked_BD = rng.normal(size=(11, 5))
    square_LL = squared_distances(vector_LD, vector_LD)
    width = median_distance(square_LL)
    assert width == pytest.approx(median_width(vector_LD), rel=1e-12)
    fits = RidgeFits(gaussian(square_LL, width), score_LT)
    kernel_BL = gaussian(squared_distances(asked_BD, vector_LD), width)
    for ridge in (1e-3, 0.1, 30.0):
        weight_LT, constant_T = fits.at(ridge)
        expected = ridge_prediction(vector_LD, score_LT, asked_BD, width, ridge)
        np.testing.assert_allclose(kernel_BL @ weight_LT + constant_T, expected, atol=1e-9)
        alone = np.concatenate([refitted(vector_LD, score_LT, np.array([i]), width, ridge) for i in range(37)])
        np.testing.assert_allclose(score_LT - fits.left_out(ridge), alone, atol=1e-8)
        found = fits.foretold(ridge, folds(37))
        for fold in folds(37):
            np.testing.assert_allclose(found[fold], refitted(vector_LD, score_LT, fold, width, ridge), atol=1e-8)


def test_a_row_far_from_all_landmarks_gets_the_constant_and_a_shift_of_the_scores_shifts_the_rest():
    rng = np.random.default_rng(0)
    vector_LD, score_LT = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    kernel_LL = gaussian(squared_distances(vector_LD, vector_LD), 1.0)
    weight_LT, constant_T = RidgeFits(kernel_LL, score_LT).at(0.1)
    moved_LT, moved_T = RidgeFits(kernel_LL, score_LT + 7).at(0.1)
    np.testing.assert_allclose(moved_LT, weight_LT, atol=1e-9)
    np.testing.assert_allclose(moved_T, constant_T + 7)
    np.testing.assert_allclose(weight_LT.sum(axis=0), 0, atol=1e-9)  # so that nothing but the constant is left far off


def test_the_ridge_is_the_one_by_which_rows_left_out_are_foretold_best():
    rng = np.random.default_rng(1)
    vector_LD = rng.normal(size=(40, 3))
    width = median_width(vector_LD)
    kernel_LL = kernel_of(vector_LD, vector_LD, width)
    plain_LT = np.stack([np.sin(vector_LD[:, 0]), vector_LD[:, 1]], axis=1) + 0.3 * rng.normal(size=(40, 2))
    errors = []
    for ridge in RIDGES:
        alone = np.concatenate([refitted(vector_LD, plain_LT, np.array([i]), width, ridge) for i in range(40)])
        errors.append((np.square(plain_LT - alone).sum(axis=0) / plain_LT.var(axis=0)).sum())
    fits = RidgeFits(kernel_LL, plain_LT)
    every = np.ones(2, bool)
    assert fits.best_ridge(every) == RIDGES[np.argmin(errors)]
    assert RidgeFits(kernel_LL, plain_LT * [1, 1e6]).best_ridge(every) == fits.best_ridge(every)
    assert fits.best_ridge(~every) == RIDGES[-1]


@pytest.mark.parametrize("keep", [True, False])
def test_a_whole_matrix_is_that_of_the_dense_version(keep, tmp_path):
    pool, rng = make_rows(60, 6), np.random.default_rng(0)
    row_E, exact_ET = rng.permutation(60)[:35], rng.normal(size=(35, 4)).astype(np.float32)
    scorer = Landmarks(STORES, write(tmp_path, row_E, exact_ET), ridge=0.05, width=0.7, keep_exact=keep)
    state = fitted(scorer, pool)
    vector_ND = np.concatenate(
        [np.sqrt(w) * one.astype(np.float64) for w, one in zip(STORES.weights, pool.feature_KBD, strict=True)], axis=1
    )
    width = 0.7 * median_width(vector_ND[row_E])
    expected = ridge_prediction(vector_ND[row_E], exact_ET.astype(np.float64), vector_ND, width, 0.05)
    if keep:
        expected[row_E] = exact_ET
    np.testing.assert_allclose(scorer.score(pool, pool, state), expected, atol=1e-6)
    found = scorer.findings(state)
    assert (found["landmarks"], found["exact_rows"], found["ridge"]) == (35, 35, 0.05)
    assert found["width"] == pytest.approx(width)


def test_neither_the_order_of_the_exact_run_nor_the_cut_of_the_pool_shows_in_a_byte(tmp_path):
    pool, rng = make_rows(50, 6), np.random.default_rng(0)
    row_E, exact_ET = np.arange(5, 45), rng.normal(size=(40, 4)).astype(np.float32)
    order = rng.permutation(40)
    first = fitted(Landmarks(STORES, write(tmp_path / "a", row_E, exact_ET)), pool)
    for name, cuts in (("b", 3), ("c", 1), ("d", 50)):
        again = fitted(Landmarks(STORES, write(tmp_path / name, row_E[order], exact_ET[order])), pool, cuts)
        assert {key: one.tobytes() for key, one in again.items()} == {key: one.tobytes() for key, one in first.items()}


def test_a_smooth_function_of_the_features_is_recovered_and_nothing_is_warned_of(tmp_path, caplog):
    pool = make_rows(300, 4)
    true_NT = smooth(pool)
    row_E = np.random.default_rng(0).permutation(300)[:150]
    scorer = Landmarks(STORES, write(tmp_path, row_E, true_NT[row_E]))
    with caplog.at_level(logging.INFO):
        state = fitted(scorer, pool)
    found = scorer.findings(state)
    assert found["held_out"] > 0.9
    assert min(found["tasks"].values()) > 0.9
    assert set(found["tasks"]) == {"sums", "reversals", "talk"}
    others = np.setdiff1d(np.arange(300), row_E)
    score_NT = scorer.score(pool, pool, state)
    assert min(np.corrcoef(score_NT[others, t], true_NT[others, t])[0, 1] for t in range(4)) > 0.95
    assert f"agrees with what is exact at {found['held_out']:.2f} (Spearman, held out" in caplog.text
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_of_noise_nothing_is_foretold_and_that_is_said(tmp_path, caplog):
    """The correlation of noise lies around 0, on neither side of it."""
    pool = make_rows(120, 4)
    found = []
    for seed in range(8):
        rng = np.random.default_rng(100 + seed)  # another stream than that of the features
        scorer = Landmarks(STORES, write(tmp_path / str(seed), np.arange(100), rng.normal(size=(100, 4))))
        found += scorer.findings(fitted(scorer, pool))["columns"]
    error = 1 / np.sqrt(100)  # of one column's
    assert abs(np.mean(found)) < 3 * error / np.sqrt(len(found))
    assert np.std(found) == pytest.approx(error, rel=0.5)
    assert "of sums, reversals, talk little can be foretold from these features" in caplog.text


def test_columns_without_an_order_take_no_part_and_touch_no_other(tmp_path):
    pool, rng = make_rows(60, 6), np.random.default_rng(0)
    exact_ET = rng.normal(size=(60, 4)).astype(np.float32)
    rows = np.arange(50)
    plain = Landmarks(STORES, write(tmp_path / "plain", rows, exact_ET[:50, [0, 3]]), ridge=0.1)
    exact_ET[7, 1], exact_ET[:, 2] = np.nan, 0.25
    scorer = Landmarks(STORES, write(tmp_path / "odd", rows, exact_ET[:50]), ridge=0.1)
    state = fitted(scorer, pool)
    score_NT = scorer.score(pool, pool, state)
    assert np.isnan(score_NT[50:, 1]).all()
    np.testing.assert_allclose(score_NT[:, 2], 0.25)
    row_E, other_ET = plain.exact.matched([str(row) for row in range(60)], replace_columns(2))
    start = {"row": row_E, "exact": other_ET}
    alone = plain.fit(1, plain.sums(1, pool, pool, start), pool, start)
    np.testing.assert_allclose(score_NT[:, [0, 3]], plain.score(pool, pool, alone), atol=1e-6)
    found = scorer.findings(state)
    assert [one is None for one in found["columns"]] == [False, True, True, False]
    assert found["tasks"]["reversals"] is None


def replace_columns(count: int) -> Columns:
    return Columns(COLUMNS.rows[:count], COLUMNS.ids[:count], COLUMNS.tasks[:count])


def test_columns_are_standardised_by_the_exact_rows(tmp_path):
    rng = np.random.default_rng(0)
    exact_ET, score_NT = rng.normal(size=(30, 2)), 0.1 * rng.normal(size=(80, 2))
    store = ShardStore(tmp_path / "attribution")
    store.commit("a", attribution_table(np.arange(80), score_NT), {})
    commit_attribution(
        store,
        ["a"],
        {},
        [0, 1],
        ["v", "w"],
        ["sums", "talk"],
        column_stats(column_moments([(np.arange(30), exact_ET)])),
    )
    found, expected = Attribution(store.folder).stats, column_moments([(np.arange(30), exact_ET)])
    np.testing.assert_array_equal(found.mean_T, expected.mean)
    np.testing.assert_array_equal(found.std_T, expected.std)
    assert Attribution(store.folder).shape == (80, 2)


def test_folds_part_the_rows_in_the_same_way_every_time():
    for rows in (20, 57):
        parts = folds(rows)
        assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
        assert len(parts) == FOLDS
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(map(np.array_equal, parts, folds(rows)))
        assert any((np.diff(part) > 1).any() for part in parts)


def test_rows_are_found_by_id_wherever_they_stand(tmp_path):
    exact_ET = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    run = write_exact(tmp_path / "exact", ["c", "a", "d"], TARGETS, exact_ET)
    whole = write_catalogues(tmp_path / "run", ["a", "b", "c", "d"], TARGETS)
    pool, targets = pool_of(whole.path), all_targets(pool_of(whole.path, "target"))
    start = Landmarks(STORES, str(run.path)).start(pool, targets)
    assert start["row"].tolist() == [0, 2, 3]
    np.testing.assert_array_equal(start["exact"], exact_ET[[1, 0, 2]])


@pytest.mark.parametrize(
    ("ids", "targets", "text", "said"),
    [
        (["a", "z"], TARGETS, "Say", r"options\.exact: 1 of the 2 rows of .* not in this run's pool \(such as 'z'\)"),
        (["a"], TARGETS[:3], "Say", r"has other targets than this run: number 4 is nothing there and 'y' of talk here"),
        (["a"], [*TARGETS[:3], ("u", "talk")], "Say", r"number 4 is 'u' of talk there and 'y' of talk here"),
        (["a"], TARGETS[::-1], "Say", r"number 1 is 'y' of talk there and 'v' of sums here; give both the same data"),
        (["a"], TARGETS, "Do not say", r"the row 'a' is another record in .* than in this run's pool"),
    ],
)
def test_a_run_over_another_pool_or_other_targets_is_refused(ids, targets, text, said, tmp_path):
    run = write_exact(tmp_path / "exact", ids, targets, np.ones((len(ids), len(targets))), text)
    whole = write_catalogues(tmp_path / "run", ["a", "b", "c"], TARGETS)
    with pytest.raises(ConfigError, match=said):
        Landmarks(STORES, str(run.path)).start(pool_of(whole.path), all_targets(pool_of(whole.path, "target")))


def test_what_is_no_scored_run_is_refused(tmp_path):
    for place, said in (("", "required, but not given"), (str(tmp_path / "none"), "holds no attribution matrix")):
        with pytest.raises(ConfigError, match=rf"^attribution\.options\.exact: .*{said}"):
            Landmarks(STORES, place).columns(COLUMNS)
    run = write_exact(tmp_path / "run", ["a"], TARGETS, np.ones((1, 4)))
    exact = ExactRun(str(run.path))
    exact.require_apart(write_catalogues(tmp_path / "other", ["a"], TARGETS))
    for own in (run, run.cascade):
        with pytest.raises(ConfigError, match="is the run that is to be made from it"):
            exact.require_apart(own)


def test_damage_of_the_other_run_is_said_and_left_to_it(tmp_path):
    run = write_exact(tmp_path / "run", ["a", "b"], TARGETS, np.ones((2, 4)))
    (part,) = run.attribution.glob("part-*.arrow")
    part.write_bytes(part.read_bytes()[:-100] + b"\0" * 100)
    with pytest.raises(ArtifactMismatch, match=r"options\.exact: .*run the config of .* again") as caught:
        ExactRun(str(run.path)).matched(["a", "b"], COLUMNS)
    assert not isinstance(caught.value, DamagedArtifact)
    assert part.exists()


def test_too_few_landmarks_and_features_that_tell_nothing_apart_are_refused(tmp_path):
    pool, rng = make_rows(60, 6), np.random.default_rng(0)
    few = Landmarks(STORES, write(tmp_path / "few", np.arange(19), rng.normal(size=(19, 4))))
    with pytest.raises(DataError, match="19 rows of .* have a feature in this run, and 20 are the least"):
        fitted(few, pool)
    same = replace(pool, feature_KBD=[np.repeat(one[:1], 60, axis=0) for one in pool.feature_KBD])
    scorer = Landmarks(STORES, write(tmp_path / "same", np.arange(30), rng.normal(size=(30, 4))))
    with pytest.raises(DataError, match="most of the 30 exact rows have the same feature"):
        fitted(scorer, same)
    with pytest.raises(ArtifactMismatch, match=r"'landmarks' needs feature vectors.*set features\.featurizer"):
        Landmarks(made_for(1, featurizer="ngram"), str(tmp_path / "few"))


def test_a_config_tells_whose_scores_it_reads_those_of_its_cheap_pass_included():
    landmarks = {"scorer": "landmarks", "options": {"exact": "runs/exact"}}
    tree = {
        "model": {"base": "m"},
        "data": {"pool": "p", "targets": {"a": "t"}},
        "selectors": [{"name": "s", "method": "bids", "budget": 1}],
    }
    for changes, found in (
        ({}, (0, 0)),
        ({"attribution": landmarks, "features": {"featurizer": "representation"}}, (1, 1)),
        ({"cascade": {"attribution": landmarks}}, (1, 0)),
    ):
        config = parse_config({**tree, **changes})
        places = [one.exact.place for one in propagating_scorers(config)]
        assert (len(places), len(propagating_scorers(config, cascade=False))) == found
        assert set(places) <= {"runs/exact"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exact": 3}, r"attribution\.options\.exact: found 3, expected a text"),
        ({"ridge": 0.0}, r"attribution\.options\.ridge: found 0\.0, expected auto or a number above 0"),
        ({"width": -1}, r"attribution\.options\.width: found -1, expected a number above 0"),
        ({"keep_exact": "yes"}, r"attribution\.options\.keep_exact: found 'yes', expected true or false"),
    ],
)
def test_a_wrong_option_is_named(options, said):
    with pytest.raises(ConfigError, match=said):
        make_scorer("landmarks", STORES, options)
