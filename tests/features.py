"""Feature rows made in code, as the datastores would give them to a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from influray.features.ngram import NgramFeaturizer
from influray.protocols import FeatureRows, SparseRows, Stores, TextExample
from influray.registry import featurizer_traits

INTEGERS = ("tokens", "loss_tokens")


def make_rows(
    rows: int, dimension: int, checkpoints: int = 2, seed: int = 0, groups: Sequence[str] = ("a", "b")
) -> FeatureRows:
    """Random unit rows with norms that differ by a factor of ten; groups in turn."""
    generator = np.random.default_rng(seed)
    features, facts = [], []
    texts = [" ".join(generator.choice(list("abcdefgh"), 1 + i % 7)) for i in range(rows)]
    counts = counted(texts, dimension)
    for _ in range(checkpoints):
        wide = generator.standard_normal((rows, dimension))
        features.append((wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16))
        names = ("norm", "grad_norm", "loss", "el2n")
        plain = {name: generator.uniform(0.3, 3, rows).astype(np.float32) for name in names}
        facts.append(plain | {name: generator.integers(1, 99, rows).astype(np.int32) for name in INTEGERS})
    return FeatureRows(np.arange(rows), [groups[i % len(groups)] for i in range(rows)], features, facts, counts)


def counted(texts: Sequence[str], buckets: int, n: int = 2) -> SparseRows:
    """Return the hashed n-grams of texts."""
    examples = [TextExample(i, text, 1, 1) for i, text in enumerate(texts)]
    counts = NgramFeaturizer(n=n, buckets=buckets).compute(examples).counts
    assert counts is not None
    return counts


def taken(rows: FeatureRows, which: slice | np.ndarray | list[int]) -> FeatureRows:
    """Return some of the rows, in the order asked for."""
    row_B = rows.row_B[which]
    groups = dict(zip(rows.row_B.tolist(), rows.group_B, strict=True))
    return FeatureRows(
        row_B,
        [groups[row] for row in row_B.tolist()],
        [block[which] for block in rows.feature_KBD],
        [{name: column[which] for name, column in facts.items()} for facts in rows.facts_KB],
        None if rows.counts is None else taken_counts(rows.counts, which),
    )


def taken_counts(rows: SparseRows, which: slice | np.ndarray | list[int]) -> SparseRows:
    at = [np.arange(rows.offset[i], rows.offset[i + 1]) for i in np.arange(len(rows.offset) - 1)[which]]
    entry = np.concatenate([np.zeros(0, np.int64), *at])
    return SparseRows(np.cumsum([0, *map(len, at)]), rows.bucket[entry], rows.count[entry])


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
