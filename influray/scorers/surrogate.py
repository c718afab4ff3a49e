"""Influence foretold by a small network from the vectors of a row and of a target: NN-CIFT, arXiv 2502.09969.

Shape suffixes: B pool rows, L landmarks, T target columns, D numbers of a vector over all checkpoints, H hidden units.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from influray.protocols import Arrays, DataError, FeatureRows, Stores
from influray.scorers.propagation import FOLDS, Propagating, folds, joined

ROWS = 64  # of a step, each with all targets


class Surrogate(Propagating):
    """A(x, v) by a network of one hidden layer on the vectors of a row and of a target, one network for all columns.

    It is trained on the exact scores of the rows of the run `exact`, standardised by column, by squared error with
    Adam: `epochs` passes over the rows, 64 a step, each with all targets. x and v are the stored vectors of this run,
    those of several checkpoints joined with the roots of their weights, centred and scaled to a mean square of 1, rows
    and targets each by themselves. Rows that have exact scores keep them, unless `keep_exact` is off. As for
    `landmarks`, columns are standardised by the moments of the exact rows, which should be drawn at random.

    Source: NN-CIFT, section 3: 2,049 numbers, 100 hidden units, 1. Differences: vectors are not unit rows of a sentence
    encoder but any featurizer's; a step takes all pairs of 64 rows, so that products are of rows and of targets, not of
    pairs; scores are standardised, which in their own units are a few hundredths; there 64 pairs a step, rate 1e-4, 20
    epochs, and an end at a loss of 1e-3.

    Cost: D H + T H operations a row; once, in one process, six networks are trained (one a fold), each
    6 epochs (L (D + T) H + L / 64 T D H) operations.

    Raises:
        ArtifactMismatch: the stores hold no vectors.
    """

    name = "surrogate"

    def __init__(
        self,
        stores: Stores,
        exact: str = "",
        hidden: Annotated[int, Field(ge=1)] = 100,
        epochs: Annotated[int, Field(ge=1)] = 60,
        learning_rate: Annotated[float, Field(gt=0)] = 1e-3,
        weight_decay: Annotated[float, Field(ge=0)] = 0.0,
        seed: Annotated[int, Field(ge=0)] = 0,
        keep_exact: bool = True,
    ) -> None:
        super().__init__(stores, exact, keep_exact)
        self._hidden, self._epochs, self._rate = hidden, epochs, learning_rate
        self._decay, self._seed = weight_decay, seed

    def learn(
        self, vector_LD: np.ndarray, score_LT: np.ndarray, used_T: np.ndarray, target: FeatureRows
    ) -> dict[str, np.ndarray]:
        """Return the network's weights, what targets put in, and how vectors and scores are scaled; what is foretold.

        Raises DataError where columns are not those of single targets, or all vectors are one and the same.
        """
        target_TD, _, _ = _scaled(self._vectors_of(target))
        row_LD, mean_D, scale = _scaled(vector_LD)
        centre_T = score_LT.mean(axis=0)
        spread_T = np.where(used_T, score_LT.std(axis=0), 0)  # a column that takes no part is its mean
        z_LT = (score_LT - centre_T) / np.where(used_T, spread_T, 1)
        foretold_LT = np.empty_like(score_LT)
        for fold in folds(len(row_LD)):
            rest = np.setdiff1d(np.arange(len(row_LD)), fold)
            foretold_LT[fold] = _values(row_LD[fold], self._trained(row_LD[rest], target_TD, z_LT[rest], used_T))
        return {
            **self._trained(row_LD, target_TD, z_LT, used_T),
            **{"mean": mean_D, "scale": np.array([scale]), "centre": centre_T, "spread": spread_T},
            "foretold": foretold_LT * spread_T + centre_T,
        }

    def foretell(self, vector_BD: np.ndarray, state: Arrays) -> np.ndarray:
        """Return the network's values in the units of the scores, [B, T] float64."""
        row_BD = (vector_BD - state["mean"]) / state["scale"]
        return _values(row_BD, state) * state["spread"] + state["centre"]

    def operations(self, L: int, D: int, T: int) -> tuple[float, float]:
        """Return those of six networks, a pair's as measured: its numbers pass through memory some times; of a row."""
        products = 6.0 * D * (L + L / ROWS * T)
        return (FOLDS + 1) * self._epochs * self._hidden * (70.0 * L * T + products), 2.0 * self._hidden * (D + T)

    def _vectors_of(self, target: FeatureRows) -> np.ndarray:
        """Return the vectors of the targets of the columns, [T, D] float64."""
        columns = self.exact.columns
        place_of = {row: place for place, row in enumerate(target.row_B.tolist())}
        if -1 in columns.rows:
            raise DataError(
                f"attribution.options.exact: the columns of {self.exact.place} are not those of single targets, whose "
                "vectors a surrogate compares rows with; take influence_model or landmarks"
            )
        missing = [one for row, one in zip(columns.rows, columns.ids, strict=True) if row not in place_of]
        if missing:
            raise DataError(
                f"attribution.options.exact: the target {missing[0]!r} has no feature in this run, and a surrogate "
                "compares rows with it; take influence_model or landmarks"
            )
        return joined(target, self._weights, np.array([place_of[row] for row in columns.rows]))

    def _trained(
        self, row_LD: np.ndarray, target_TD: np.ndarray, z_LT: np.ndarray, used_T: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the network: "of_row" [D, H]; "input" [T, H], what targets put into units; "out" [H]; "constant"."""
        D, H = row_LD.shape[1], self._hidden
        generator = torch.Generator().manual_seed(self._seed)
        row, target, wanted = (torch.from_numpy(np.ascontiguousarray(one)) for one in (row_LD, target_TD, z_LT))
        used = torch.from_numpy(used_T)
        # As torch starts a Linear: evenly within the inverse root of what goes in.
        sizes = [((D, H), 2 * D), ((D, H), 2 * D), ((H,), 2 * D), ((H,), H), ((1,), H)]
        weights = [
            ((2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1) / math.sqrt(fan)).requires_grad_()
            for size, fan in sizes
        ]
        of_row, of_target, hidden, out, constant = weights
        adam = torch.optim.AdamW(weights, lr=self._rate, weight_decay=self._decay)
        for _ in range(self._epochs if used_T.any() else 0):
            for rows in torch.randperm(len(row), generator=generator).split(ROWS):
                pairs = (row[rows] @ of_row)[:, None] + (target @ of_target + hidden)
                error = torch.relu(pairs) @ out + constant - wanted[rows]
                adam.zero_grad()
                error[:, used].square().mean().backward()
                adam.step()
        made = {"of_row": of_row, "input": target @ of_target + hidden, "out": out, "constant": constant}
        return {name: one.detach().numpy() for name, one in made.items()}


def _values(row_BD: np.ndarray, network: Arrays) -> np.ndarray:
    """Return the network's value of every pair, relu(x W_row + input) out + constant, [B, T]."""
    row_BH = row_BD @ network["of_row"]
    values = [np.maximum(row_BH + input_H, 0) @ network["out"] for input_H in network["input"]]
    return np.stack(values, axis=1) + network["constant"]


def _scaled(vector_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return vectors centred and scaled to a mean square of 1, and by what; where all are one, they are 0."""
    mean_D = vector_BD.mean(axis=0)
    scale = float(np.sqrt(np.square(vector_BD - mean_D).mean())) or 1.0
    return (vector_BD - mean_D) / scale, mean_D, scale
