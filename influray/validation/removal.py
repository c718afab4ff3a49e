"""remove and keep: the best rows of a task taken out of the training, or alone in it, beside the worst and random ones.

What is measured is the answer loss on test records, which no score has seen. An effect is positive where the scores are
right: training without the best rows hurts more than without random ones, training on them alone less than on those.

Shape suffixes: N candidate rows, U test records, S seeds, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from influray.config_base import as_written
from influray.config_validate import RemovalConfig
from influray.evaluation.paired_effect import paired_effect
from influray.protocols import ConfigError
from influray.runtime.retraining_worker import Retraining
from influray.validation import draws
from influray.validation.scorers import RANDOM
from influray.validation.setting import Setting

Which = Literal["remove", "keep"]


def check(setting: Setting, which: Which) -> None:
    """Raise ConfigError where the experiment cannot be made."""
    settings = _settings(setting, which)
    setting.require_seeds(which)
    known = setting.task_names
    for task in () if settings.tasks == "all" else settings.tasks:
        if task not in known:
            raise ConfigError(f"validate.{which}.tasks: no task is called {task!r} (known: {', '.join(known)})")
    setting.require_tests(which, _tasks(setting, which))
    if setting.scorer(settings.scorer, f"validate.{which}.scorer").scorer == RANDOM:
        raise ConfigError(f"validate.{which}.scorer: random rows are what the others are compared with; take another")
    rows, candidates = _rows(setting, which), len(setting.candidates)
    if not 0 < 2 * rows <= candidates:
        raise ConfigError(
            f"validate.{which}.rows: {settings.rows} are {rows} of {candidates} candidates; best and worst rows are "
            f"apart up to {candidates // 2}, and one is the least"
        )


def retrainings(setting: Setting, which: Which) -> list[Retraining]:
    """Return the retrainings, task by task: the best, the worst, the random draws, each with every seed."""
    found = []
    for task in _tasks(setting, which):
        for rows in _sets(setting, which, task):
            taken = rows if which == "keep" else np.setdiff1d(setting.candidates, rows, assume_unique=True)
            found += setting.with_every_seed(taken)
    return found


def result(setting: Setting, done: list[Retraining], which: Which) -> dict[str, Any]:
    """Return the effect on every task of the best and the worst rows of each, as plain JSON."""
    settings, seeds = _settings(setting, which), len(setting.config.seeds)
    tasks = _tasks(setting, which)
    tested = [task for task in setting.task_names if task in setting.test_tasks]
    loss_MU = setting.losses(done)["test"]
    member_UG = np.array([[one == task for task in tested] for one in setting.test_tasks], float)
    loss = (loss_MU @ (member_UG / member_UG.sum(axis=0))).reshape(len(tasks), 2 + settings.draws, seeds, len(tested))
    lines = []
    for task, loss_CSG in zip(tasks, loss, strict=True):
        line: dict[str, Any] = {"task": task, "tokens": _tokens(setting, which, task)}
        for place, kind in enumerate(("best", "worst")):
            line[kind] = _effects(loss_CSG[place], loss_CSG[2:], tested, task, which)
        lines.append(line)
    facts = {"scorer": settings.scorer, "rows": _rows(setting, which), "draws": settings.draws, "tested": tested}
    return {**facts, "lines": lines}


def _effects(
    loss_SG: np.ndarray, control_RSG: np.ndarray, tested: Sequence[str], task: str, which: Which
) -> dict[str, Any]:
    """Return the effects on every task, on the task itself ("own"), and on the mean of the others."""
    sign = 1.0 if which == "remove" else -1.0
    others_G = np.array([one != task for one in tested])

    def effect(share_G: np.ndarray) -> dict[str, Any]:
        found = paired_effect(sign * (loss_SG @ share_G), sign * (control_RSG @ share_G).T)
        return {"value": found.value, "interval": list(found.interval)}

    every = {one: effect(np.eye(len(tested))[g]) for g, one in enumerate(tested)}
    others = effect(others_G / others_G.sum()) if others_G.any() else None
    return {"own": every[task], "others": others, "tasks": every}


def _sets(setting: Setting, which: Which, task: str) -> list[np.ndarray]:
    """Return the best rows of a task, the worst, and the random draws of as many tokens as the best have."""
    rows, settings = setting.candidates, _settings(setting, which)
    score_N = _task_score(setting, which, task)
    order_N = np.lexsort((rows, -score_N))  # ties to the lower row
    size = _rows(setting, which)
    best, worst = np.sort(rows[order_N[:size]]), np.sort(rows[order_N[-size:]])
    tokens = int(setting.tokens[order_N[:size]].sum())
    number = setting.task_names.index(task)
    seed = setting.config.seed
    return [
        best,
        worst,
        *(draws.random_rows(rows, setting.tokens, tokens, seed, number, r) for r in range(settings.draws)),
    ]


def _tokens(setting: Setting, which: Which, task: str) -> dict[str, Any]:
    best, worst, *drawn = (
        int(setting.tokens[np.searchsorted(setting.candidates, rows)].sum()) for rows in _sets(setting, which, task)
    )
    return {"best": best, "worst": worst, "random": drawn}


def _task_score(setting: Setting, which: Which, task: str) -> np.ndarray:
    """Return the score of every candidate for a task, float64 [N]; what has none counts as the mean."""
    one = setting.scorer(_settings(setting, which).scorer, f"validate.{which}.scorer")
    return np.nan_to_num(setting.task_scores(one)[:, setting.task_names.index(task)])


def _settings(setting: Setting, which: Which) -> RemovalConfig:
    return getattr(setting.config, which)


def _tasks(setting: Setting, which: Which) -> tuple[str, ...]:
    wanted = _settings(setting, which).tasks
    return setting.task_names if wanted == "all" else wanted


def _rows(setting: Setting, which: Which) -> int:
    wanted = _settings(setting, which).rows
    return wanted if isinstance(wanted, int) else int(as_written(wanted) * len(setting.candidates))
