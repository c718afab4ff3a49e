"""DSIR and BM25 against dictionaries and loops, and the laws they obey."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from influray.protocols import ArtifactMismatch, Columns, ConfigError, FeatureRows, Stores
from influray.scorers import counts as counts_module
from influray.scorers.bm25 import BM25
from influray.scorers.dsir import DSIR
from influray.scorers.options import make_scorer
from influray.testing.scorers import taken
from tests.features import counted, made_for
from tests.reference.text_scores import bm25_score, dsir_weights

V = 61  # few enough buckets for collisions
WORDS = [
    "the",
    "a",
    "sum",
    "of",
    "one",
    "two",
    "three",
    "add",
    "reverse",
    "word",
    "say",
    "is",
    "what",
    "code",
    "list",
    ",",
    ".",
    "?",
]


def text_rows(texts: Sequence[str], groups: Sequence[str] = ("a",), n: int = 2) -> FeatureRows:
    group_B = [groups[i % len(groups)] for i in range(len(texts))]
    return FeatureRows(np.arange(len(texts)), group_B, [], [{}], counted(texts, V, n))


def texts(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    weight = 1 / np.arange(1, len(WORDS) + 1)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 30), p=weight / weight.sum())) for _ in range(count)]


def lists(rows: FeatureRows) -> list[list[int]]:
    """Each row as its buckets, each as often as it is counted."""
    found = rows.counts
    cut = zip(found.offset[:-1], found.offset[1:], strict=True)
    return [np.repeat(found.bucket[a:b], found.count[a:b]).tolist() for a, b in cut]


def made(**changes) -> Stores:
    return made_for(**{"weights": (1.0,), "featurizer": "ngram", "direction": "", "bounds_K": ((0, V),), **changes})


def scores(scorer, pool: FeatureRows, target: FeatureRows, parts: int = 1) -> np.ndarray:
    """Fit on the pool, its sums taken of so many blocks, and score it."""
    total: dict[str, np.ndarray] = {}
    for rows in np.array_split(np.arange(len(pool)), parts):
        for name, array in scorer.sums(1, taken(pool, rows), target, {}).items():
            total[name] = total.get(name, 0) + array
    return scorer.score(pool, target, scorer.fit(1, total, target, {}))


POOL, TARGET = text_rows(texts(60, 0), ("p",)), text_rows(texts(7, 1), ("b", "a", "b"))
SCORERS = [
    *(DSIR(made()), DSIR(made(), smoothing=0.5, per_token=True), DSIR(made(), pooled=True)),
    *(BM25(made()), BM25(made(), k1=0.9, b=0.4)),
]
NAMES = ["dsir", "dsir smoothed", "dsir pooled", "bm25", "bm25 flat"]


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_dsir_is_the_sum_of_log_ratios_of_a_rows_n_grams(smoothing):
    found = scores(DSIR(made(), smoothing=smoothing), POOL, TARGET)
    for g, task in enumerate(("b", "a")):
        targets = [text for text, group in zip(lists(TARGET), TARGET.group_B, strict=True) if group == task]
        expected = dsir_weights(lists(POOL), targets, range(V), smoothing)
        np.testing.assert_allclose(found[:, g], expected, rtol=1e-6, atol=1e-5)
    per_token = scores(DSIR(made(), smoothing=smoothing, per_token=True), POOL, TARGET)
    np.testing.assert_allclose(per_token, found / [[len(text)] for text in lists(POOL)], rtol=1e-6)


def test_dsir_of_pooled_targets_has_one_distribution_for_all_of_them():
    found = scores(DSIR(made(), smoothing=0.5, pooled=True), POOL, TARGET)
    expected = dsir_weights(lists(POOL), lists(TARGET), range(V), 0.5)
    assert found.shape == (60, 1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6, atol=1e-5)
    columns = DSIR(made(), pooled=True).columns(Columns((0, 1), ("x", "y"), ("b", "a")))
    assert columns == Columns((-1,), ("dsir",), ("dsir",))


def test_dsir_by_hand():
    """Pool: x x y and y z. Target: x z. p_pool = (2, 2, 1) / 5, p_target = (1, 0, 1) / 2 for x, y, z."""
    pool, target = text_rows(["x x y", "y z"], n=1), text_rows(["x z"], n=1)
    x, y, z = (np.log(t + 1e-8) - np.log(p + 1e-8) for t, p in ((0.5, 0.4), (0, 0.4), (0.5, 0.2)))
    np.testing.assert_allclose(scores(DSIR(made()), pool, target)[:, 0], [2 * x + y, y + z], rtol=1e-6)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_bm25_is_the_textbook_formula(k1, b):
    found = scores(BM25(made(), k1=k1, b=b), POOL, TARGET)
    pool, targets = lists(POOL), lists(TARGET)
    expected = [[bm25_score(query, text, pool, k1, b) for query in targets] for text in pool]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bm25_of_texts_that_share_nothing_is_nothing():
    pool, target = text_rows(["alpha", "beta beta"], n=1), text_rows(["gamma", "beta"], n=1)
    assert len(set(lists(pool)[0] + lists(pool)[1] + lists(target)[0])) == 3, "the buckets must differ"
    found = scores(BM25(made()), pool, target)
    assert (found[:, 0] == 0).all()
    assert found[1, 1] > found[0, 1] == 0


@pytest.mark.parametrize("scorer", SCORERS, ids=NAMES)
def test_blocks_rows_and_their_order_do_not_show(scorer, monkeypatch):
    found = scores(scorer, POOL, TARGET)
    assert (found.dtype, len(found)) == (np.float32, 60)
    assert scores(scorer, POOL, TARGET, parts=7).tobytes() == found.tobytes()
    monkeypatch.setattr(counts_module, "_PIECE", 50)
    assert scores(scorer, POOL, TARGET).tobytes() == found.tobytes()
    order = np.random.default_rng(0).permutation(60)
    assert scores(scorer, taken(POOL, order), TARGET).tobytes() == found[order].tobytes()
    sums = scorer.sums(1, POOL, TARGET, {})
    state = scorer.fit(1, sums, TARGET, {})
    alone = [scorer.score(taken(POOL, np.array([i])), TARGET, state) for i in range(60)]
    assert np.concatenate(alone).tobytes() == found.tobytes()


@pytest.mark.parametrize("scorer", SCORERS, ids=NAMES)
def test_the_columns_are_as_wide_as_the_matrix(scorer):
    columns = scorer.columns(Columns(tuple(range(7)), tuple("0123456"), tuple(TARGET.group_B)))
    assert len(columns) == scores(scorer, POOL, TARGET).shape[1]
    if isinstance(scorer, DSIR) and len(columns) > 1:
        assert columns == Columns((-1, -1), ("b", "a"), ("b", "a"))


def test_a_copy_of_a_target_answers_it_best():
    pool = text_rows([*texts(40, 3), "reverse code , word ?", *texts(40, 4)], ("p",))
    target = text_rows(["reverse code , word ?"])
    assert scores(BM25(made()), pool, target)[:, 0].argmax() == 40
    assert scores(DSIR(made(), smoothing=0.1, per_token=True), pool, target)[:, 0].argmax() == 40


def test_other_stores_and_wrong_options_are_refused():
    for kind, name in ((DSIR, "dsir"), (BM25, "bm25")):
        with pytest.raises(ArtifactMismatch, match=f"'{name}' needs counts of n-grams.*'gradient'.*featurizer: ngram"):
            kind(made(featurizer="gradient"))
    for name, options, message in (
        ("dsir", {"smoothing": -1}, r"attribution\.options\.smoothing: found -1"),
        ("dsir", {"per_token": 1}, r"attribution\.options\.per_token: found 1, expected true or false"),
        ("dsir", {"pooled": "yes"}, r"attribution\.options\.pooled: found 'yes', expected true or false"),
        ("bm25", {"k1": float("nan")}, r"attribution\.options\.k1: found nan"),
        ("bm25", {"b": 1.5}, r"attribution\.options\.b: found 1\.5, expected a number from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_scorer(name, made(), options)
