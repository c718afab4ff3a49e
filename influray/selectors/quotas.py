"""Least and most rows of every source and of every task, kept to while rows are chosen one at a time.

Every row is in one cell (source, task). A row may be chosen if the rest can still be completed; once that is not so
for a cell, it never is again, since whatever completes a later choice would have completed the earlier one.

Shape suffixes: N rows, S sources, T tasks; the last of each stands for all that no bound names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from influray.config_messages import near
from influray.protocols import Bounds, ConfigError

SOURCES, TASKS = "constraints.sources", "constraints.tasks"


class Quotas:
    """Whether a row may be chosen. `cell_N` is the cell of each row.

    `left` is the number of rows to choose from the open ones, None where only tokens are counted: then there are no
    minimums. `forced` are counted as chosen at once.

    Raises:
        ConfigError: no selection satisfies the bounds; the first reason found.
    """

    def __init__(
        self,
        source_N: Sequence[str] | None,
        task_N: Sequence[str] | None,
        sources: Mapping[str, Bounds],
        tasks: Mapping[str, Bounds],
        left: int | None,
        open_N: np.ndarray,
        forced: np.ndarray,
    ) -> None:
        code_N, self._low_S, self._high_S = _coded(source_N, sources, SOURCES, len(open_N))
        other_N, self._low_T, self._high_T = _coded(task_N, tasks, TASKS, len(open_N))
        self._names = list(sources), list(tasks)
        self._width = len(self._low_T)
        self.cell_N = code_N * self._width + other_N
        self.left = left
        self._open_ST = np.bincount(self.cell_N[open_N], minlength=len(self._low_S) * self._width).reshape(
            len(self._low_S), self._width
        )
        self._taken_ST = np.zeros_like(self._open_ST)
        self._plan_ST: np.ndarray | None = None  # one way to complete the selection
        for position in forced.tolist():
            self.take(position)
        self._check()

    def _check(self) -> None:
        sides = (
            (SOURCES, self._names[0], self._low_S, self._high_S, self._taken_ST.sum(1), self._open_ST.sum(1)),
            (TASKS, self._names[1], self._low_T, self._high_T, self._taken_ST.sum(0), self._open_ST.sum(0)),
        )
        for key, names, low, high, taken, free in sides:
            for i, name in enumerate(names):
                if taken[i] > high[i]:
                    raise ConfigError(
                        f"{key}.{name}.max: {high[i]}, but constraints.include holds {taken[i]} of its rows"
                    )
                if taken[i] + free[i] < low[i]:
                    raise ConfigError(
                        f"{key}.{name}.min: {low[i]}, but only {taken[i] + free[i]} of its rows can be chosen"
                    )
            if self.left is None:
                continue
            outstanding, room = int(np.maximum(low - taken, 0).sum()), int(np.minimum(free, high - taken).sum())
            if outstanding > self.left:
                raise ConfigError(
                    f"{key}: the minimums ask for {outstanding} more rows, and the budget has room for {self.left}"
                )
            if room < self.left:
                raise ConfigError(f"{key}: the maximums leave room for {room} rows, and {self.left} are to be chosen")
        if self.left is not None and self._solve(self._open_ST, self._taken_ST, self.left) is None:
            raise ConfigError(
                f"constraints: {SOURCES} and {TASKS} can each be kept, but not both together with the {self.left} rows "
                "that are to be chosen"
            )

    def allows(self, position: int) -> bool:
        """Return whether a row may be chosen, so that the rest can still be completed."""
        cell = self._cell(position)
        if self.left is None:
            return bool(
                self._taken_ST[cell[0]].sum() < self._high_S[cell[0]]
                and self._taken_ST[:, cell[1]].sum() < self._high_T[cell[1]]
            )
        if self._plan_ST is not None and self._plan_ST[cell] > 0:
            return True
        open_ST, taken_ST = self._open_ST.copy(), self._taken_ST.copy()
        open_ST[cell] -= 1
        taken_ST[cell] += 1
        rest_ST = self._solve(open_ST, taken_ST, self.left - 1)
        if rest_ST is None:
            return False
        rest_ST[cell] += 1
        self._plan_ST = rest_ST
        return True

    def completable(self) -> bool:
        """Return whether the open rows can complete the selection."""
        if self.left is None or self._plan_ST is not None:
            return True
        self._plan_ST = self._solve(self._open_ST, self._taken_ST, self.left)
        return self._plan_ST is not None

    def take(self, position: int) -> None:
        """Count a chosen row, one that `allows` has just said yes to."""
        cell = self._cell(position)
        self._open_ST[cell] -= 1
        self._taken_ST[cell] += 1
        if self.left is not None:
            self.left -= 1
        if self._plan_ST is not None:
            self._plan_ST[cell] -= 1

    def bar(self, positions: np.ndarray) -> None:
        """Count open rows that will not be chosen."""
        gone_ST = np.bincount(self.cell_N[positions], minlength=self._open_ST.size).reshape(self._open_ST.shape)
        self._open_ST -= gone_ST
        if self._plan_ST is not None and (self._plan_ST > self._open_ST).any():
            self._plan_ST = None

    def _cell(self, position: int) -> tuple[int, int]:
        return divmod(int(self.cell_N[position]), self._width)

    def _solve(self, open_ST: np.ndarray, taken_ST: np.ndarray, left: int) -> np.ndarray | None:
        """Return how many rows of each cell complete the selection, [S, T], or None where nothing does."""
        low_S = np.maximum(self._low_S - taken_ST.sum(1), 0)
        low_T = np.maximum(self._low_T - taken_ST.sum(0), 0)
        high_S, high_T = self._high_S - taken_ST.sum(1), self._high_T - taken_ST.sum(0)
        if left < 0 or (high_S < low_S).any() or (high_T < low_T).any():
            return None
        if self._width == 1:
            plan_S = _shared_out(open_ST[:, 0], low_S, high_S, left)
            return None if plan_S is None else plan_S[:, None]
        if len(low_S) == 1:
            plan_T = _shared_out(open_ST[0], low_T, high_T, left)
            return None if plan_T is None else plan_T[None]
        return _flow(open_ST, (low_S, high_S), (low_T, high_T), left)


def _shared_out(open_G: np.ndarray, low_G: np.ndarray, high_G: np.ndarray, left: int) -> np.ndarray | None:
    """Return how many rows of each group complete the selection, in proportion to their room, or None."""
    room_G = np.minimum(open_G, high_G) - low_G
    spare = left - int(low_G.sum())
    if (room_G < 0).any() or not 0 <= spare <= room_G.sum():
        return None
    plan_G = low_G + room_G * spare // max(1, int(room_G.sum()))
    for g in np.argsort(plan_G - low_G - room_G, kind="stable"):  # what rounding down left over
        more = min(left - int(plan_G.sum()), int(low_G[g] + room_G[g] - plan_G[g]))
        plan_G[g] += more
    return plan_G


def _flow(
    open_ST: np.ndarray,
    bounds_S: tuple[np.ndarray, np.ndarray],
    bounds_T: tuple[np.ndarray, np.ndarray],
    left: int,
) -> np.ndarray | None:
    """Return how many rows of each cell complete the selection, or None: a circulation with lower bounds.

    Source: the reduction to a maximum flow, Ford and Fulkerson 1962, chapter II.
    """
    import networkx as nx  # here: it takes a while, and few selections have bounds

    (low_S, high_S), (low_T, high_T) = bounds_S, bounds_T
    graph = nx.DiGraph()
    owed: dict[str, int] = {}  # what lower bounds bring to a node, or take from it

    def edge(start: str, end: str, low: int, high: int) -> None:
        graph.add_edge(start, end, capacity=high - low)
        owed[end] = owed.get(end, 0) + low
        owed[start] = owed.get(start, 0) - low

    for s in range(len(low_S)):
        edge("in", f"s{s}", int(low_S[s]), int(high_S[s]))
    for t in range(len(low_T)):
        edge(f"t{t}", "out", int(low_T[t]), int(high_T[t]))
    for s, t in zip(*open_ST.nonzero(), strict=True):
        edge(f"s{s}", f"t{t}", 0, int(open_ST[s, t]))
    edge("out", "in", left, left)
    for node, amount in owed.items():
        if amount:
            start, end = ("+", node) if amount > 0 else (node, "-")
            graph.add_edge(start, end, capacity=abs(amount))
    graph.add_nodes_from("+-")
    value, flow = nx.maximum_flow(graph, "+", "-")
    if value != sum(amount for amount in owed.values() if amount > 0):
        return None
    plan_ST = np.zeros_like(open_ST)
    for s, t in zip(*open_ST.nonzero(), strict=True):
        plan_ST[s, t] = flow[f"s{s}"][f"t{t}"]
    return plan_ST


def _coded(
    value_N: Sequence[str] | None, bounds: Mapping[str, Bounds], key: str, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's number among the named values (the last: none of them), and the least and most of each."""
    if not bounds:
        return np.zeros(rows, np.int64), np.zeros(1, np.int64), np.full(1, rows)
    assert value_N is not None, "checked where the limits are read"
    number = {name: i for i, name in enumerate(bounds)}
    code_N = np.fromiter((number.get(value, len(number)) for value in value_N), np.int64, rows)
    known = set(value_N)
    for name in bounds:
        if name not in known:
            hint = near(name, dict.fromkeys(known))
            raise ConfigError(f"{key}.{name}: no row of the matrix has it{hint} (known: {', '.join(sorted(known))})")
    low = np.array([*(low for low, _ in bounds.values()), 0])
    high = np.array([*(rows if high is None else high for _, high in bounds.values()), rows])
    return code_N, low, high
