"""Feature rows made in code, as the datastores would give them to a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from influray.protocols import FeatureRows, Stores


def make_rows(
    rows: int, dimension: int, checkpoints: int = 2, seed: int = 0, groups: Sequence[str] = ("a", "b")
) -> FeatureRows:
    """Random unit rows with norms that differ by a factor of ten; groups in turn."""
    generator = np.random.default_rng(seed)
    features, facts = [], []
    for _ in range(checkpoints):
        wide = generator.standard_normal((rows, dimension))
        features.append((wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16))
        names = ("norm", "grad_norm", "loss")
        facts.append({name: generator.uniform(0.3, 3, rows).astype(np.float32) for name in names})
    return FeatureRows(np.arange(rows), [groups[i % len(groups)] for i in range(rows)], features, facts)


def taken(rows: FeatureRows, which: slice | np.ndarray | list[int]) -> FeatureRows:
    """Return some of the rows, in the order asked for."""
    row_B = rows.row_B[which]
    groups = dict(zip(rows.row_B.tolist(), rows.group_B, strict=True))
    return FeatureRows(
        row_B,
        [groups[row] for row in row_B.tolist()],
        [block[which] for block in rows.feature_KBD],
        [{name: column[which] for name, column in facts.items()} for facts in rows.facts_KB],
    )


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
    return Stores(**{"weights": weights, "direction": "sgd", **changes})
