"""Who may still be chosen: the budget, and the limits that a selection must keep to.

A selector proposes rows in its own order of preference; an Admission takes each one or bars it for good. What is
barred once would never have become possible later, so no selector ever has to look back; but for the limits of roles,
where a row that is passed over at its turn stays out, though rows chosen after it might have made room. Near-duplicates
alone can leave no way on, where a chosen row stands in for one that a minimum needs: then the selection begins anew
without it (`api.run_selector`).

Shape suffixes: N rows of the matrix.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

import numpy as np

from influray.config_messages import near
from influray.protocols import ConfigError, Selection, SelectionProblem
from influray.selectors.duplicates import NearDuplicates
from influray.selectors.normalisers import row_tasks
from influray.selectors.quotas import Quotas
from influray.selectors.roles import RoleSums, first_broken, named

logger = logging.getLogger(__name__)

LOOK_AHEAD = 2  # times the rows that are to be chosen: so far down an order near-duplicates are prepared for


class DeadEnd(Exception):
    """The rows chosen so far cannot be completed under the limits; without `position` among them they might be."""

    def __init__(self, position: int | None) -> None:
        super().__init__("a near-duplicate of a chosen row was needed")
        self.position = position


class Admission:
    """The state of one selection. Rows are positions 0..N-1 in the order of the matrix.

    `open_N[p]`: p is neither chosen nor barred. `forced` are the rows that must be in, ascending; a selector takes
    them first, whatever else it thinks of them.

    Raises:
        ConfigError: no selection can keep to the limits; it names the one that is the reason.
    """

    def __init__(self, problem: SelectionProblem) -> None:
        limits, rows = problem.limits, problem.attribution.shape[0]
        self._budget, self._rows_N = problem.budget, problem.attribution.rows
        self._tokens_left = limits.tokens
        self.open_N = np.ones(rows, bool)
        self.left = rows  # rows that are open
        self._chosen: list[int] = []
        self._barred: list[np.ndarray] = []
        self._reasons: dict[str, int] = {}  # limit -> rows it barred
        self.forced = _positions(problem, limits.include, "constraints.include", required=True)
        self._token_N: np.ndarray | None = None
        self._duplicates: NearDuplicates | None = None
        self._quotas: Quotas | None = None
        self._roles = RoleSums(problem.role_limits) if problem.role_limits else None
        self._check_forced(problem)
        excluded = _positions(problem, limits.exclude, "constraints.exclude", required=False)
        self._bar(excluded, "constraints.exclude")
        passed = np.array(problem.passed_over, np.int64)
        self._bar(passed[self.open_N[passed]], "constraints.near_duplicates")
        if limits.tokens is not None:
            self._token_N = np.asarray(_fact(problem, "tokens", "a budget in tokens"), np.int64)
            self._longest_first = np.argsort(-self._token_N, kind="stable")
            self._falling_N = -self._token_N[self._longest_first]  # ascending, for searchsorted
            self._too_long = 0  # how many of the longest are no longer open
            self._spend(0)
        if limits.near_duplicates is not None:
            if problem.features is None:
                raise ConfigError("constraints.near_duplicates: needs the features of the rows, [N, D]; none are given")
            self._duplicates = NearDuplicates(problem.features, limits.near_duplicates, self._rows_N)
        if limits.sources or limits.tasks:
            self._quotas = self._open_quotas(problem)

    @property
    def chosen(self) -> np.ndarray:
        """The positions taken so far, in order, int64."""
        return np.array(self._chosen, np.int64)

    @property
    def full(self) -> bool:
        """Nothing more is to be chosen."""
        return len(self._chosen) == self._budget or (self._tokens_left is not None and not self.left)

    @property
    def expected(self) -> int:
        """About how many rows the whole selection will hold."""
        if self._token_N is None or self._tokens_left is None:
            return self._budget
        return min(self._budget, len(self._chosen) + 1 + int(self._tokens_left / max(1.0, self._token_N.mean())))

    def expect(self, positions: np.ndarray) -> None:
        """Prepare for open rows, ascending positions, that are likely to be proposed; no result depends on it."""
        if self._duplicates is not None:
            self._duplicates.expect(self._rows_N[positions])

    def take(self, position: int) -> bool:
        """Choose an open row and return True; or bar it and return False.

        Raises:
            DeadEnd: with what is chosen no selection can keep to the limits any more.
        """
        assert self.open_N[position], "a row is proposed once"
        assert not self.full, "nothing more is to be chosen"
        forced = len(self._chosen) < len(self.forced)
        if not forced:
            broken = None if self._roles is None else self._roles.broken_by(position)
            if broken is not None:
                self._bar(np.array([position]), named(broken))
                self._require_completable(named(broken))
                return False
            repeated = None if self._duplicates is None else self._duplicates.find(int(self._rows_N[position]))
            if repeated is not None:
                self._bar(np.array([position]), "constraints.near_duplicates")
                self._check_completable(position, repeated)
                return False
            if self._quotas is not None and not self._quotas.allows(position):
                cell = self._quotas.cell_N == self._quotas.cell_N[position]
                self._bar(np.flatnonzero(cell & self.open_N), "constraints.sources and constraints.tasks")
                return False
        self.open_N[position] = False
        self.left -= 1
        self._chosen.append(position)
        if self._quotas is not None and not forced:
            self._quotas.take(position)
        if self._roles is not None:
            self._roles.take(position)
        if self._duplicates is not None:
            self._duplicates.add(int(self._rows_N[position]))
        if self._token_N is not None:
            self._spend(int(self._token_N[position]))
        return True

    def _require_completable(self, limit: str) -> None:
        """Raise ConfigError where sources or tasks can no longer be kept to without the rows that a limit bars."""
        if self._quotas is not None and not self._quotas.completable():
            raise ConfigError(
                f"constraints: after {len(self._chosen)} rows of {self._budget} the limits of sources and tasks can no "
                f"longer be kept to in the order of the method{self._because()}; loosen one of them, lower the budget, "
                f"or give {limit} the role seek"
            )

    def _check_completable(self, position: int, repeated: int) -> None:
        """Raise DeadEnd where sources or tasks can no longer be kept to without the row that has just been barred."""
        if self._quotas is None or self._quotas.completable():
            return
        other = int(np.searchsorted(self._rows_N, repeated))
        same = self._quotas.cell_N[other] == self._quotas.cell_N[position]
        # Of two rows of one source and task the other would do no better.
        raise DeadEnd(None if same or other in self.forced else other)

    def newly_barred(self) -> np.ndarray:
        """Return the positions barred since the last call, also those that were never proposed."""
        barred = np.concatenate([np.zeros(0, np.int64), *self._barred])
        self._barred.clear()
        return barred

    def finish(self) -> None:
        """Check that the selection is complete.

        Raises:
            ConfigError: it is not, and which limits are the reason.
        """
        if self._token_N is not None and not self._chosen:
            raise ConfigError(f"budget.tokens: no row fits; the shortest that may be chosen is longer{self._because()}")
        if not self.full:
            # Which of two near-duplicates is in decides about others: another order may have room for a few more. So it
            # is with the rows of a task to avoid.
            order = " in the order of the method" if self._duplicates is not None or self._roles is not None else ""
            raise ConfigError(
                f"constraints: only {len(self._chosen)} rows can be chosen{order}, and the budget is {self._budget}"
                f"{self._because()}; lower the budget or loosen a limit"
            )

    def _because(self) -> str:
        reasons = [f"{count} rows barred by {limit}" for limit, count in self._reasons.items()]
        return f" ({', '.join(reasons)})" if reasons else ""

    def _bar(self, positions: np.ndarray, limit: str) -> None:
        if len(positions):
            self.open_N[positions] = False
            self.left -= len(positions)
            self._barred.append(positions)
            self._reasons[limit] = self._reasons.get(limit, 0) + len(positions)
            if self._quotas is not None:
                self._quotas.bar(positions)

    def _spend(self, tokens: int) -> None:
        """Pay for a row and bar all that no longer fit."""
        assert self._token_N is not None
        assert self._tokens_left is not None
        self._tokens_left -= tokens
        start = self._too_long
        self._too_long = max(start, int(np.searchsorted(self._falling_N, -self._tokens_left, side="left")))
        longer = self._longest_first[start : self._too_long]
        # Rows that must be in have been added up beforehand: they fit, whatever is left at the moment.
        self._bar(np.sort(longer[self.open_N[longer] & ~np.isin(longer, self.forced)]), "budget.tokens")

    def _check_forced(self, problem: SelectionProblem) -> None:
        limits = problem.limits
        both = sorted(set(limits.include) & set(limits.exclude))
        if both:
            raise ConfigError(f"constraints.exclude: the id {both[0]!r} stands in constraints.include too")
        if len(self.forced) > problem.budget:
            raise ConfigError(
                f"constraints.include: {len(self.forced)} rows must be in, more than the budget of {problem.budget}"
            )
        broken = first_broken(problem.role_limits, self.forced, len(self.forced))
        if broken is not None:
            limit, _, total = broken
            raise ConfigError(
                f"constraints.include: the standardised influence of its {len(self.forced)} rows on {named(limit)} "
                f"sums to {total:+.3g}, and may not be {'below' if total < 0 else 'above'} 0; leave some of them out, "
                "or let the task have role seek"
            )
        if limits.tokens is not None:
            tokens = np.asarray(_fact(problem, "tokens", "a budget in tokens"), np.int64)[self.forced].sum()
            if tokens > limits.tokens:
                raise ConfigError(
                    f"constraints.include: its rows have {tokens} tokens, more than budget.tokens = {limits.tokens}"
                )

    def _open_quotas(self, problem: SelectionProblem) -> Quotas:
        limits = problem.limits
        source_N = _fact(problem, "source", "constraints.sources") if limits.sources else None
        task_N = row_tasks(problem.attribution, problem.groups) if limits.tasks else None
        strange = [task for task in limits.tasks if task not in problem.groups]
        if strange:
            known = dict.fromkeys(problem.groups)
            raise ConfigError(
                f"constraints.tasks.{strange[0]}: no column has this task{near(strange[0], known)} "
                f"(known: {', '.join(known)})"
            )
        least = sum(low for low, _ in (*limits.sources.values(), *limits.tasks.values()))
        if limits.tokens is not None and least:
            raise ConfigError("constraints: a min needs a budget in examples; with budget.tokens give max only")
        left = None if limits.tokens is not None else problem.budget
        return Quotas(source_N, task_N, limits.sources, limits.tasks, left, self.open_N, self.forced)


def _positions(problem: SelectionProblem, ids: Sequence[str], key: str, *, required: bool) -> np.ndarray:
    """Return the positions of all rows with these ids, ascending.

    Raises:
        ConfigError: they are required, and one is not there or is that of several rows.
    """
    if not ids:
        return np.zeros(0, np.int64)
    position: dict[str, list[int]] = {}
    for place, name in enumerate(_fact(problem, "id", key)):
        position.setdefault(str(name), []).append(place)
    missing = [name for name in ids if name not in position]
    if missing and required:
        raise ConfigError(
            f"{key}: the id {missing[0]!r} is not among the rows of the matrix{near(missing[0], position)} "
            "(no such record, or it is in the quarantine)"
        )
    if missing:
        logger.warning("%s: %d of %d ids are not among the rows of the matrix", key, len(missing), len(ids))
    found = {name: position[name] for name in ids if name in position}
    if required and (twice := [name for name, places in found.items() if len(places) > 1]):
        raise ConfigError(f"{key}: the id {twice[0]!r} is that of {len(position[twice[0]])} rows; which one?")
    return np.unique(np.array([place for places in found.values() for place in places], np.int64))


def _fact(problem: SelectionProblem, name: str, what: str) -> Sequence[str]:
    if name not in problem.facts:
        raise ConfigError(f"rows.{name}: required for {what}, but not given")
    return problem.facts[name]


def take_in_order(admission: Admission, order: Iterable[int] | np.ndarray) -> np.ndarray:
    """Take the forced rows, then those of `order` (positions; a repeated one counts once) until the budget is spent.

    Returns the positions chosen, in order. Raises as `Admission.finish`.
    """
    for position in admission.forced.tolist():
        admission.take(position)
    if isinstance(order, np.ndarray):
        likely = order[: LOOK_AHEAD * admission.expected]
        admission.expect(np.unique(likely[admission.open_N[likely]]))
    take_open(admission, order.tolist() if isinstance(order, np.ndarray) else order)
    admission.finish()
    return admission.chosen


def take_open(admission: Admission, positions: Iterable[int], most: float = math.inf) -> int:
    """Take up to `most` of the rows that are open, in this order, and return how many were taken."""
    taken = 0
    for position in positions:
        if admission.full or taken >= most:
            break
        if admission.open_N[position]:
            taken += admission.take(position)
    return taken


def as_selection(
    problem: SelectionProblem, positions: np.ndarray, merit_N: np.ndarray | None, column_N: np.ndarray | None
) -> Selection:
    """Return the selection of these positions with the merit and winning column that each row of the matrix has.

    None stands for a method that has none: NaN and -1.
    """
    n = len(positions)
    return Selection(
        problem.attribution.rows[positions],
        np.full(n, np.nan) if merit_N is None else np.asarray(merit_N, np.float64)[positions],
        np.full(n, -1, np.int64) if column_N is None else np.asarray(column_N, np.int64)[positions],
    )
