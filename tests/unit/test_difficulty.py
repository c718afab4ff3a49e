"""Scores of a row by itself: a column of the datastores, weighted over checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from influray.protocols import ArtifactMismatch, Columns, ConfigError
from influray.scorers.difficulty import EL2N, Length, MeanLoss
from influray.scorers.options import make_scorer
from tests.features import made_for, make_rows

POOL, TARGET = make_rows(20, 8, 2, seed=0), make_rows(3, 8, 2, seed=1)


@pytest.mark.parametrize(
    ("kind", "options", "column"),
    [
        (MeanLoss, {}, "loss"),
        (EL2N, {}, "el2n"),
        (Length, {}, "loss_tokens"),
        (Length, {"count": "tokens"}, "tokens"),
    ],
)
def test_the_score_is_the_column_and_low_turns_it_round(kind, options, column):
    stores = made_for(2, featurizer="loss")
    high, low = (kind(stores, **options, prefer=p).score(POOL, TARGET, {}) for p in ("high", "low"))
    expected = sum(w * facts[column].astype(np.float64) for w, facts in zip(stores.weights, POOL.facts_KB, strict=True))
    np.testing.assert_allclose(high[:, 0], expected, rtol=1e-6)
    assert np.array_equal(low, -high)
    assert high.shape == (20, 1)


def test_there_is_one_column_of_no_target():
    columns = EL2N(made_for(1, featurizer="loss")).columns(Columns((0, 1), ("a", "b"), ("x", "y")))
    assert columns == Columns((-1,), ("el2n",), ("el2n",))


def test_stores_without_the_column_are_refused_with_the_featurizer_that_has_it():
    with pytest.raises(ArtifactMismatch, match="'el2n' needs the column 'el2n'.* 'gradient' .*featurizer: loss"):
        EL2N(made_for(1, featurizer="gradient"))
    with pytest.raises(
        ArtifactMismatch, match="'loss' needs the column 'loss'.*'ngram' .*featurizer: gradient or loss"
    ):
        MeanLoss(made_for(1, featurizer="ngram"))
    with pytest.raises(
        ArtifactMismatch, match="'length' needs the column 'tokens'.*'gradient'.*: representation or loss or .*ngram"
    ):
        Length(made_for(1, featurizer="gradient"), count="tokens")
    with pytest.raises(ArtifactMismatch, match=r"'el2n'.*'package\.module:Class'"):
        EL2N(made_for(1, featurizer="package.module:Class", makes="vectors", columns=("norm",)))
    assert EL2N(made_for(1, featurizer="package.module:Class", makes="facts", columns=("el2n",)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loss", {"prefer": "most"}, r"attribution\.options\.prefer: found 'most', expected high or low"),
        ("length", {"count": "words"}, r"attribution\.options\.count: found 'words', expected loss_tokens or tokens"),
    ],
)
def test_wrong_options_are_named_by_their_key(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_scorer(name, made_for(1, featurizer="loss"), options)
