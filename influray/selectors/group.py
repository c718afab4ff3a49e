"""Group: within each cluster of like rows, merit counts for less the more a row is like what is chosen there.

Shape suffixes: N rows, c rows of one cluster, m numbers of a sketch.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np

from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission
from influray.selectors.clusters import ClusterCount, cluster_rows, members_of
from influray.selectors.normalisers import NormaliserName, TaskWeights
from influray.selectors.reductions import ReductionName, RowMerit
from influray.selectors.row_facts import features_of

STEPS = 2.0**10  # cosines are rounded to parts of it, so that the last bits of a product choose no row


class Group(Selector):
    """Each pick of a cluster is its row of largest merit * (1 - mean cosine to the rows chosen of that cluster).

    Clusters take part in proportion to their sizes: the next pick is that of the cluster with the least (picks + 1/2) /
    rows, of equals the one with the row of most worth, then with the lowest row. A merit of 0 or below is not
    discounted: less of a harm would be more. The discount is a mean: a copy of one of n chosen rows loses 1 / n. Ties
    go to the lowest row, `merit` is the discounted one. A smaller budget gives a prefix.

    Cost: the clusters (influray.selectors.clusters), then rows of a cluster x 256 a pick.

    Args:
        clusters: how many, of like features by k-means; auto = the root of the number of rows.
        normaliser, reduction, reduction_options, task_weights: as top_k has them.

    Source: Group-MATES, arXiv 2502.14709; facebookresearch/Group-MATES select_indices.py. There merits and clusters are
    those of a model that is trained to foretell the influence of groups; here merits are reductions of the matrix, and
    rows are alike by their features, which for gradients is how far one's step does the other's work. There a cluster
    gives the same part of its rows, rounded down, and a small one nothing.
    """

    needs_features = True

    def __init__(
        self,
        clusters: ClusterCount = "auto",
        normaliser: NormaliserName = "none",
        reduction: ReductionName = "group_mean_max",
        reduction_options: Mapping[str, Any] | None = None,
        task_weights: TaskWeights | None = None,
    ) -> None:
        self._clusters: ClusterCount = clusters
        self._merit = RowMerit(normaliser, reduction, reduction_options, task_weights)

    def select(self, problem: SelectionProblem) -> Selection:
        features, rows = features_of(problem, "group"), problem.attribution.rows
        reduced = self._merit.of(problem)
        found = cluster_rows(features, rows, self._clusters, problem.seed)
        clusters = {
            label: _Cluster(positions, reduced.merit_N[positions], found.sketch_Nm[positions])
            for label, positions in members_of(found.label_N).items()
        }
        admission = Admission(problem)
        merit: list[float] = []
        for position in admission.forced.tolist():
            admission.take(position)
            merit.append(clusters[int(found.label_N[position])].choose(position))
        waiting = [cluster.turn(label) for label, cluster in clusters.items()]
        heapq.heapify(waiting)
        while not admission.full and waiting:
            *_, label = heapq.heappop(waiting)
            cluster = clusters[label]
            while not admission.full and (position := cluster.best(admission.open_N)) is not None:
                if admission.take(position):
                    merit.append(cluster.choose(position))
                    heapq.heappush(waiting, cluster.turn(label))
                    break
        admission.finish()
        return Selection(rows[admission.chosen], np.array(merit), reduced.column_N[admission.chosen])


class _Cluster:
    """The rows of one cluster, `positions` ascending, and what each is worth beside those chosen."""

    def __init__(self, positions: np.ndarray, merit_c: np.ndarray, sketch_cm: np.ndarray) -> None:
        self._positions, self._merit_c, self._sketch_cm = positions, merit_c, sketch_cm
        self._worth_c, self._likeness_c, self._picks = merit_c, np.zeros(len(positions)), 0

    def turn(self, label: int) -> tuple[float, float, int, int]:
        """Return what orders the clusters that wait."""
        return (self._picks + 0.5) / len(self._positions), -float(self._worth_c.max()), int(self._positions[0]), label

    def best(self, open_N: np.ndarray) -> int | None:
        """Return the open row of most worth, None where there is none."""
        worth_c = np.where(open_N[self._positions], self._worth_c, -np.inf)
        place = int(worth_c.argmax())
        return None if np.isneginf(worth_c[place]) else int(self._positions[place])

    def choose(self, position: int) -> float:
        """Note that a row is chosen, worth nothing from now on, and return what it was worth."""
        place = int(np.searchsorted(self._positions, position))
        worth = float(self._worth_c[place])
        cosine_c = (self._sketch_cm @ self._sketch_cm[place]).astype(np.float64)
        self._likeness_c += np.round(np.clip(cosine_c, -1, 1) * STEPS) / STEPS
        self._picks += 1
        self._merit_c[place] = -np.inf
        self._worth_c = self._merit_c * np.where(self._merit_c > 0, 1 - self._likeness_c / self._picks, 1)
        return worth
