"""Feature rows made in code, as the datastores would give them to a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from influray.features.ngram import NgramFeaturizer
from influray.protocols import FeatureRows, SparseRows, Stores, TextExample
from influray.registry import featurizer_traits
from influray.testing.scorers import made_rows


def make_rows(
    rows: int, dimension: int, checkpoints: int = 2, seed: int = 0, groups: Sequence[str] = "ab"
) -> FeatureRows:
    return made_rows(rows, dimension, checkpoints, seed, groups)


def counted(texts: Sequence[str], buckets: int, n: int = 2) -> SparseRows:
    """Return the hashed n-grams of texts."""
    examples = [TextExample(i, text, 1, 1) for i, text in enumerate(texts)]
    counts = NgramFeaturizer(n=n, buckets=buckets).compute(examples).counts
    assert counts is not None
    return counts


def scaled(rows: FeatureRows, factor: float) -> FeatureRows:
    """Return the rows with norms `factor` times as large."""
    facts = [{**one, "norm": one["norm"] * np.float32(factor)} for one in rows.facts_KB]
    return replace(rows, facts_KB=facts)


def plain(rows: FeatureRows, checkpoint: int) -> np.ndarray:
    """The rows of a checkpoint before they were made units, float64."""
    return (
        rows.feature_KBD[checkpoint].astype(np.float64) * rows.facts_KB[checkpoint]["norm"].astype(np.float64)[:, None]
    )


def made_for(checkpoints: int = 2, **changes) -> Stores:
    """Stores of plain gradients; the last checkpoint weighs most."""
    weights = tuple(2 * (k + 1) / (checkpoints * (checkpoints + 1)) for k in range(checkpoints))
    made = {"weights": weights, "direction": "sgd"}
    if "makes" not in changes:
        traits = featurizer_traits(changes.get("featurizer", "gradient"))
        made |= {"makes": traits.makes, "columns": traits.columns}
    return Stores(**{**made, **changes})
