"""Scores of a row by itself, whatever the targets: its loss, its EL2N, its length. One column of the matrix.

They are what influence must beat: EL2N and loss of arXiv 2107.07075, and the longest answers of arXiv 2402.06094.

Shape suffixes: B pool rows of a block.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from influray.protocols import Arrays, Columns, FeatureRows, Scorer, Stores
from influray.scorers.options import require

Prefer = Literal["high", "low"]


class _OneColumn(Scorer):
    """A column of the datastores, its mean over the checkpoints by their weights."""

    name: ClassVar[str]

    def __init__(self, stores: Stores, column: str, prefer: Prefer) -> None:
        require(self.name, stores, column=column)
        self._column, self._weights, self._sign = column, stores.weights, 1 if prefer == "high" else -1

    def columns(self, targets: Columns) -> Columns:
        """Return the one column, by the scorer's name."""
        return Columns((-1,), (self.name,), (self.name,))

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, 1] float32."""
        score_B = np.zeros(len(pool))
        for weight, facts in zip(self._weights, pool.facts_KB, strict=True):
            score_B += weight * facts[self._column]
        return (self._sign * score_B[:, None]).astype(np.float32)


class MeanLoss(_OneColumn):
    """Mean loss over the row's trained tokens; `prefer` "high" takes the rows that the model does not know yet."""

    name = "loss"

    def __init__(self, stores: Stores, prefer: Prefer = "high") -> None:
        super().__init__(stores, "loss", prefer)


class EL2N(_OneColumn):
    """Mean |softmax - one-hot label|_2 over the row's trained tokens; `prefer` "high" takes the hard rows.

    Source: arXiv 2107.07075. There a row has one label, and its error is that of classifiers some epochs into their
    training, averaged over ten of them; here the labels are tokens, and the model is the base, before any training.
    The very hardest are often noise: `drop_share` of top_k leaves them out (BERT on a data diet, arXiv 2211.05610).
    """

    name = "el2n"

    def __init__(self, stores: Stores, prefer: Prefer = "high") -> None:
        super().__init__(stores, "el2n", prefer)


class Length(_OneColumn):
    """Tokens of the row's answers (`count` "loss_tokens") or of all of it ("tokens"); `prefer` "high" = long rows."""

    name = "length"

    def __init__(
        self, stores: Stores, count: Literal["loss_tokens", "tokens"] = "loss_tokens", prefer: Prefer = "high"
    ) -> None:
        super().__init__(stores, count, prefer)
