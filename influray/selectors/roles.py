"""Tasks to protect and to avoid: they take no part in what a row is worth, and limit which rows may be chosen.

The rows chosen so far must do a protected task no harm, and an avoided one no good: the sum of their mean standardised
influence on it is never below, or never above, 0. That is what random rows come to, so a limit says "no worse than
rows that nobody chose". It holds from the first row on, so a selection is cut off where one likes.

Shape suffixes: N rows, R tasks with a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from influray.config_messages import near
from influray.protocols import AttributionSource, ConfigError, DataError, RoleLimit, SelectionProblem
from influray.selectors.normalisers import normalise
from influray.selectors.task_scores import score_tasks
from influray.store.column_view import limited, sought

ROLES = ("seek", "protect", "avoid")


def check_roles(roles: Mapping[str, str], groups: Iterable[str]) -> None:
    """Raise ConfigError where a role is none, or is that of a task that no column has, or where no task is sought."""
    known = list(dict.fromkeys(groups))
    if not isinstance(roles, Mapping):
        raise ConfigError(f"roles: found {roles!r}, expected a mapping of tasks to seek, protect or avoid")
    for task, role in roles.items():
        if role not in ROLES:
            raise ConfigError(f"roles.{task}: found {role!r}, expected seek, protect or avoid{near(str(role), ROLES)}")
        if task not in known:
            hint = near(str(task), known)
            raise ConfigError(f"roles.{task}: no column has this task{hint} (known: {', '.join(known)})")
    if known and all(roles.get(task, "seek") != "seek" for task in known):
        raise ConfigError("roles: no task is sought, so that no row is worth more than another; let one have role seek")


def role_limits(source: AttributionSource, groups: Sequence[str], roles: Mapping[str, str]) -> tuple[RoleLimit, ...]:
    """Return the limits of the tasks that are not sought, in order of first column. One pass; 8 bytes a row and task.

    Raises:
        DataError: such a task has no column that can be standardised.
    """
    view = limited(source, groups, roles)
    if not view.groups:
        return ()
    for task in dict.fromkeys(view.groups):
        if not view.stats.used_T[[group == task for group in view.groups]].any():
            raise DataError(
                f"attribution: every column of task {task!r} is constant or non-finite, so that a selection cannot "
                f"{roles[task]} it; check its targets, or leave the task out"
            )
    normalised = normalise("zscore", view, view.groups, {})
    used = [view.groups[j] for j in normalised.column_C]
    score_RN = score_tasks(view, normalised, used, "mean")
    return tuple(RoleLimit(task, roles[task], z_N) for task, z_N in zip(dict.fromkeys(used), score_RN, strict=True))


def with_roles(problem: SelectionProblem, roles: Mapping[str, str], options: Mapping[str, Any]) -> SelectionProblem:
    """Return the problem over the columns of the tasks that are sought, with the limits of the others.

    Raises:
        ConfigError: as `check_roles`; or a weight in `options`, or a bound of rows, for a task that is not sought.
    """
    check_roles(roles, problem.groups)
    others = {task: role for task, role in roles.items() if role != "seek"}
    if not others:
        return problem
    require_sought("options.task_weights", options.get("task_weights") or {}, others)
    require_sought("constraints.tasks", problem.limits.tasks, others)
    view = sought(problem.attribution, problem.groups, others)
    limits = role_limits(problem.attribution, problem.groups, others)
    return replace(problem, attribution=view, groups=view.groups, role_limits=limits)


def require_sought(key: str, tasks: Any, roles: Mapping[str, str]) -> None:
    """Raise ConfigError where an option or limit names a task that is not sought."""
    for task in tasks if isinstance(tasks, Mapping) else ():
        role = roles.get(task, "seek")
        if role != "seek":
            raise ConfigError(
                f"{key}.{task}: the task's role is {role}, so that it limits a selection and no row is chosen for it; "
                "leave it out here, or let the task have role seek"
            )


def gains(limit: RoleLimit) -> np.ndarray:
    """Return what each row adds to the sum that is never below 0, [N]."""
    return limit.z_N if limit.role == "protect" else -limit.z_N


def named(limit: RoleLimit) -> str:
    """Return what messages call a limit."""
    return f"the {'protected' if limit.role == 'protect' else 'avoided'} task {limit.task!r}"


class RoleSums:
    """The sums of the limits over the rows chosen so far."""

    def __init__(self, limits: Sequence[RoleLimit]) -> None:
        self._limits = limits
        self._gain_NR = np.stack([gains(limit) for limit in limits], axis=1)
        self._sum_R = np.zeros(len(limits))

    def broken_by(self, position: int) -> RoleLimit | None:
        """Return the first limit that a row would break beside those chosen, None where it keeps to all."""
        below_R = self._sum_R + self._gain_NR[position] < 0
        return self._limits[int(below_R.argmax())] if below_R.any() else None

    def take(self, position: int) -> None:
        """Count a chosen row."""
        self._sum_R += self._gain_NR[position]


def first_broken(limits: Iterable[RoleLimit], place_n: np.ndarray, given: int) -> tuple[RoleLimit, int, float] | None:
    """Return a limit that rows in order of choice break, after how many, and their sum; None where they keep to all.

    The first `given` must be in, whatever they add, and are judged together.
    """
    for limit in limits:
        sum_n = np.add.accumulate(gains(limit)[place_n])[max(0, given - 1) :]
        if (sum_n < 0).any():
            first = int((sum_n < 0).argmax())
            return limit, first + max(1, given), float(sum_n[first]) * (1 if limit.role == "protect" else -1)
    return None
