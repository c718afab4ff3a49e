"""What a query is answered with, as plain values. Texts of the pool stand here as they are."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Hit:
    """A pool row that helps or harms.

    `influence` is what the attribution matrix would hold, `z` standardises it over the pool (None where all rows are
    alike). `norm` is the mean over the checkpoints, with their weights, of that of the stored row before it was made a
    unit.
    """

    row: int
    id: str
    source: str
    influence: float
    z: float | None
    norm: float | None
    text: str
    cut: bool  # text is not whole
    selections: tuple[str, ...]  # that hold the row


@dataclass(frozen=True, slots=True)
class TokenInfluence:
    """A token of the answer, or a run of them.

    `influence` is its part of the influence, in the mean over the helpful rows; `share` that over their mean influence.
    """

    text: str
    share: float | None
    influence: float


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """The rows that help most, best first, and those that harm most, worst first: none where no row harms.

    `mean` and `std` are those of the influence over the pool. `loss` (over the trained tokens) and `grad_norm` are the
    question's own, in the mean over the checkpoints with their weights; None where the run's features have none.
    """

    asked: str  # "question", "target ID" or "pool ID"
    seconds: float  # for all questions that were answered together, loading the model for the first included
    mean: float
    std: float
    exact: bool  # False: rows may be missing, and mean and std be estimates
    loss: float | None
    grad_norm: float | None
    truncated: bool  # of the question
    helpful: tuple[Hit, ...]
    harmful: tuple[Hit, ...]
    tokens: tuple[TokenInfluence, ...] | None  # None where they were not asked for

    def as_plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def as_table(self) -> pa.Table:
        """Return the rows as a table: side (helpful or harmful), rank from 1, and the fields of Hit."""
        sides = (("helpful", self.helpful), ("harmful", self.harmful))
        lines = [
            {"side": side, "rank": rank, **asdict(hit), "selections": list(hit.selections)}
            for side, hits in sides
            for rank, hit in enumerate(hits, start=1)
        ]
        return pa.Table.from_pylist(lines, _SCHEMA)


_SCHEMA = pa.schema(
    [
        ("side", pa.string()),
        ("rank", pa.int64()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("influence", pa.float64()),
        ("z", pa.float64()),
        ("norm", pa.float64()),
        ("text", pa.string()),
        ("cut", pa.bool_()),
        ("selections", pa.list_(pa.string())),
    ]
)


def number(value: float) -> float | None:
    """Return a finite float, or None: JSON has no other numbers."""
    return float(value) if math.isfinite(value) else None
