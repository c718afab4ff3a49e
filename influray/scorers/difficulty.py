"""Scores of a row by itself, whatever the targets: its loss, its EL2N, its length. One column of the matrix.

They are what influence must beat: EL2N and loss of arXiv 2107.07075, and the longest answers of arXiv 2402.06094.

Shape suffixes: B pool rows of a block.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from influray.protocols import Arrays, ArtifactMismatch, Columns, FeatureRows, Scorer, Stores
from influray.registry import FEATURIZERS
from influray.scorers.options import one_of

# Which featurizers give a column; a plug-in is taken at its word and found out when it is read.
GIVEN_BY = {
    "loss": ("loss", "gradient"),
    "el2n": ("loss",),
    "tokens": ("loss", "representation", "ngram"),
    "loss_tokens": tuple(FEATURIZERS),
}


class _OneColumn(Scorer):
    """A column of the datastores, its mean over the checkpoints by their weights."""

    name: ClassVar[str]

    def __init__(self, stores: Stores, column: str, prefer: str) -> None:
        self._sign = 1 if one_of(prefer, ("high", "low"), "prefer") == "high" else -1
        self._column, self._weights, self._featurizer = column, stores.weights, stores.featurizer
        if stores.featurizer in FEATURIZERS and stores.featurizer not in GIVEN_BY[column]:
            raise self._missing()

    def columns(self, targets: Columns) -> Columns:
        """Return the one column, by the scorer's name."""
        return Columns((-1,), (self.name,), (self.name,))

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, 1] float32.

        Raises:
            ArtifactMismatch: the datastores have no such column.
        """
        score_B = np.zeros(len(pool))
        for weight, facts in zip(self._weights, pool.facts_KB, strict=True):
            if self._column not in facts:
                raise self._missing()
            score_B += weight * facts[self._column]
        return (self._sign * score_B[:, None]).astype(np.float32)

    def _missing(self) -> ArtifactMismatch:
        return ArtifactMismatch(
            f"attribution.scorer: {self.name!r} reads the column {self._column!r}, which datastores of "
            f"{self._featurizer!r} features do not have; set features.featurizer: {GIVEN_BY[self._column][0]}"
        )


class MeanLoss(_OneColumn):
    """Mean loss over the row's trained tokens; `prefer` "high" takes the rows that the model does not know yet."""

    name = "loss"

    def __init__(self, stores: Stores, prefer: str = "high") -> None:
        super().__init__(stores, "loss", prefer)


class EL2N(_OneColumn):
    """Mean |softmax - one-hot label| over the row's trained tokens, arXiv 2107.07075; `prefer` "high" = hard rows."""

    name = "el2n"

    def __init__(self, stores: Stores, prefer: str = "high") -> None:
        super().__init__(stores, "el2n", prefer)


class Length(_OneColumn):
    """Tokens of the row's answers (`count` "loss_tokens") or of all of it ("tokens"); `prefer` "high" = long rows."""

    name = "length"

    def __init__(self, stores: Stores, count: str = "loss_tokens", prefer: str = "high") -> None:
        super().__init__(stores, one_of(count, ("loss_tokens", "tokens"), "count"), prefer)
