"""Log importance weight of each row for each task under bags of hashed n-grams (DSIR, arXiv 2302.03169).

Shape suffixes: B pool rows of a block, V buckets, G tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from influray.protocols import Arrays, Columns, FeatureRows, Scorer, Stores
from influray.scorers.counts import counts_of, row_totals, weighted_sums
from influray.scorers.options import require

_FLOOR = 1e-8  # added to both probabilities, as the code of the paper has it


class DSIR(Scorer):
    """A[i, g] = sum over buckets v of count[i, v] * (log(p_g[v] + 1e-8) - log(p_pool[v] + 1e-8)); one column a task.

    `pooled` makes one column of all targets together, as the code of the paper does where it is given several; by
    default every task has its own, and who draws by the highest of them does what no paper has.

    `smoothing` is added to every bucket's count of a task before p_g is formed (Laplace); with the few targets that
    there usually are, most buckets are empty, and 0 makes each such n-gram cost some 10. `per_token` divides by the
    number of the row's n-grams: the sum favours and punishes long rows.

    Source: DSIR, arXiv 2302.03169; p-lambda/dsir data_selection/hashed_ngram_dsir.py. Unlike that code the pool's
    probabilities are those of all rows, and short rows are not left out.
    """

    passes = 1

    def __init__(
        self,
        stores: Stores,
        smoothing: Annotated[float, Field(ge=0)] = 0.0,
        per_token: bool = False,
        pooled: bool = False,
    ) -> None:
        require("dsir", stores, makes="counts")
        self._smoothing, self._per_token, self._pooled = smoothing, per_token, pooled
        self._buckets = stores.bounds_K[0][-1] if stores.bounds_K else 0

    def columns(self, targets: Columns) -> Columns:
        """Return one column per task, in the order of its first target; pooled, the one column "dsir"."""
        tasks = self._tasks(targets.tasks)
        return Columns((-1,) * len(tasks), tasks, tasks)

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return the pool's counts by bucket."""
        rows = counts_of(pool)
        return {"count": np.bincount(rows.bucket, rows.count, self._buckets)}

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return `log_ratio` [V, G]."""
        rows = counts_of(target)
        group_n = np.repeat(np.array(target.group_B), np.diff(rows.offset))
        tasks = self._tasks(target.group_B)
        log_pool_V = np.log(sums["count"] / sums["count"].sum() + _FLOOR)
        log_ratio_VG = np.empty((self._buckets, len(tasks)))
        for g, task in enumerate(tasks):
            mine_n = group_n == task if not self._pooled else np.ones(len(group_n), bool)
            count_V = np.bincount(rows.bucket[mine_n], rows.count[mine_n], self._buckets) + self._smoothing
            log_ratio_VG[:, g] = np.log(count_V / count_V.sum() + _FLOOR) - log_pool_V
        return {"log_ratio": log_ratio_VG}

    def _tasks(self, task_T: Sequence[str]) -> tuple[str, ...]:
        return ("dsir",) if self._pooled else tuple(dict.fromkeys(task_T))

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, G] float32; sums in float64."""
        rows = counts_of(pool)
        score_BG = weighted_sums(rows.offset, rows.bucket, rows.count, state["log_ratio"])
        if self._per_token:
            score_BG /= row_totals(rows)[:, None]
        return score_BG.astype(np.float32)
