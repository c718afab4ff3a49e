"""The linear datamodelling score: against plain loops, and what must hold whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.config_validate import LEAST_SUBSETS
from influray.evaluation import lds as measures
from influray.evaluation.lds import ceiling, lds, seed_agreement
from influray.evaluation.rank_correlation import bootstrap_counts, mid_ranks, resampled_spearman, spearman
from tests.reference import lds_loop

TASKS = ("sums", "sums", "sums", "code", "code", "facts")


def predicted_effects(scores, subsets):
    """In blocks of seven rows."""
    member = np.array([np.isin(np.arange(len(scores)), one) for one in subsets])
    blocks = ((np.arange(at, min(at + 7, len(scores))), scores[at : at + 7]) for at in range(0, len(scores), 7))
    return measures.predicted_effects(blocks, member, scores.shape[1])


def world(seed: int = 0, subsets: int = 24, rows: int = 60):
    """Scores of rows, subsets of a third of them, and losses of two seeds that follow the scores with noise."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, len(TASKS)))
    drawn = [np.sort(rng.permutation(rows)[: rows // 3]) for _ in range(subsets)]
    effects = predicted_effects(scores, drawn)
    losses = -effects + rng.normal(scale=3, size=(2, *effects.shape))
    return scores, drawn, losses


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_spearman_with_ties_is_that_of_a_plain_loop(pairs):
    one, other = (np.array(values, float)[:, None] for values in zip(*pairs, strict=True))
    assert mid_ranks(one)[:, 0].tolist() == lds_loop.ranks(one[:, 0].tolist())
    assert spearman(one, other)[0] == pytest.approx(lds_loop.spearman(one[:, 0].tolist(), other[:, 0].tolist()))


def test_a_sample_of_rows_has_the_correlation_of_its_rows_written_out():
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 6, size=(2, 10, 3)).astype(float)
    count = bootstrap_counts(10, 40, seed=3)
    assert (count.sum(axis=1) == 10).all()
    found = resampled_spearman(one, other, count)
    for r in range(40):
        rows = np.repeat(np.arange(10), count[r])
        assert found[r] == pytest.approx(spearman(one[rows], other[rows]))


def test_the_score_is_that_of_a_plain_loop():
    scores, drawn, losses = world()
    found = lds(predicted_effects(scores, drawn), -losses.mean(axis=0), TASKS)
    expected = lds_loop.lds(scores.tolist(), [list(one) for one in drawn], losses.tolist(), TASKS)
    assert found.tasks == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(list(expected.values())))
    assert found.interval[0] < found.mean < found.interval[1]


def test_the_measured_effects_themselves_score_one():
    _, _, losses = world()
    measured = -losses.mean(axis=0)
    found = lds(measured, measured, TASKS)
    assert found.by_target == pytest.approx(np.ones(len(TASKS)))
    assert found.interval == pytest.approx((1.0, 1.0))
    assert lds(np.exp(measured), measured, TASKS).mean == pytest.approx(1.0), "only the order counts"
    assert lds(-measured, measured, TASKS).mean == pytest.approx(-1.0)


def test_random_scores_are_within_their_interval_of_zero():
    scores, drawn, losses = world(subsets=40)
    measured, outside = -losses.mean(axis=0), 0
    for seed in range(20):
        chance = np.random.default_rng(100 + seed).normal(size=scores.shape)
        low, high = lds(predicted_effects(chance, drawn), measured, TASKS, samples=200).interval
        outside += not low <= 0 <= high
    assert outside <= 4, "95 % intervals miss 0 far too often: they are too narrow, or the score is biased"


def test_the_order_of_rows_subsets_and_targets_does_not_matter():
    scores, drawn, losses = world()
    measured = -losses.mean(axis=0)
    found = lds(predicted_effects(scores, drawn), measured, TASKS)
    turned = np.random.default_rng(5).permutation(len(scores))
    place = np.argsort(turned)
    again = lds(predicted_effects(scores[turned], [place[one] for one in drawn]), measured, TASKS)
    assert again.by_target == pytest.approx(found.by_target)
    order = np.random.default_rng(6).permutation(len(TASKS))
    other = lds(predicted_effects(scores, drawn)[:, order], measured[:, order], [TASKS[i] for i in order])
    assert other.tasks == pytest.approx(found.tasks)
    assert other.mean == pytest.approx(found.mean)
    assert other.interval == pytest.approx(found.interval)
    backwards = lds(predicted_effects(scores, drawn)[::-1], measured[::-1], TASKS)
    assert backwards.by_target == pytest.approx(found.by_target)


def test_the_same_seed_gives_the_same_interval():
    scores, drawn, losses = world()
    given = predicted_effects(scores, drawn), -losses.mean(axis=0), TASKS
    assert lds(*given, seed=1).interval == lds(*given, seed=1).interval
    assert lds(*given, seed=1).interval != lds(*given, seed=2).interval


def test_what_does_not_vary_or_is_not_finite_scores_zero():
    scores, drawn, losses = world()
    scores = scores.copy()
    scores[:, 0], scores[:, 1] = 2.0, np.nan
    scores[3, 2] = np.nan  # one row that this scorer does not know
    found = lds(predicted_effects(scores, drawn), -losses.mean(axis=0), TASKS).by_target
    assert found[0] == found[1] == 0
    filled = scores.copy()
    filled[3, 2] = np.nanmean(scores[:, 2])
    assert found[2] == pytest.approx(lds(predicted_effects(filled, drawn), -losses.mean(axis=0), TASKS).by_target[2])


def test_too_few_subsets_are_refused_with_what_would_be_enough():
    scores, drawn, losses = world(subsets=LEAST_SUBSETS - 1)
    with pytest.raises(ValueError, match=f"{LEAST_SUBSETS} are enough"):
        lds(predicted_effects(scores, drawn), -losses.mean(axis=0), TASKS)


def test_the_agreement_of_seeds():
    _, _, losses = world()
    assert seed_agreement(-losses[:1]) is None
    assert seed_agreement(-losses) == pytest.approx(spearman(-losses[0], -losses[1]))
    same = np.stack([losses[0]] * 4)
    assert seed_agreement(same) == pytest.approx(np.ones(len(TASKS)))
    assert ceiling(1.0) == 1.0
    assert ceiling(-0.2) == 0.0
    assert 0 < ceiling(0.25) < 1
