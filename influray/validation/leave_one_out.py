"""leave_one_out: one small training, and the same with a row, or a group of rows, left out of its steps.

Seed, order, steps and weights of the others stay as they were: what differs is the terms of the rows left out. That is
the protocol of dattri-LLM (arXiv 2609.38767: 512 candidates, 16 steps, 50 trainings), with the size as an option.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from influray.protocols import ConfigError
from influray.runtime.retraining_worker import Retraining
from influray.validation import draws
from influray.validation.agreement import judge
from influray.validation.setting import Setting


def check(setting: Setting) -> None:
    """Raise ConfigError where the experiment cannot be made."""
    wanted, there = setting.config.leave_one_out.candidates, len(setting.candidates)
    if wanted > there:
        raise ConfigError(
            f"validate.leave_one_out.candidates: {wanted}, and the run's matrix has {there} rows that take part; "
            f"{there} are the most"
        )
    settings = setting.context.config.retraining
    reached = settings.batch_size * setting.config.leave_one_out.steps
    if reached < wanted:
        raise ConfigError(
            f"validate.leave_one_out: {setting.config.leave_one_out.steps} steps of {settings.batch_size} rows do not "
            f"come to all {wanted} candidates, and a row that is not reached has no effect; set steps to "
            f"{-(-wanted // settings.batch_size)} or candidates to {reached}"
        )


def retrainings(setting: Setting) -> list[Retraining]:
    """Return the retrainings, the whole first, then without each group, each with every seed."""
    rows, groups = _drawn(setting)
    steps = setting.config.leave_one_out.steps
    return [
        one
        for without in (np.zeros(0, np.int64), *groups)
        for one in setting.with_every_seed(rows, without.tolist(), steps=steps)
    ]


def result(setting: Setting, done: list[Retraining]) -> dict[str, Any]:
    """Return the table of scorers, as plain JSON."""
    rows, groups = _drawn(setting)
    seeds, effects, sizes = len(setting.config.seeds), {}, {}
    for split, losses in setting.losses(done).items():
        loss_GST = losses.reshape(1 + len(groups), seeds, -1)
        effects[split] = (loss_GST[1:] - loss_GST[:1]).transpose(1, 0, 2)
        sizes[split] = float(np.abs(effects[split].mean(axis=0)).mean())
    settings = setting.config.leave_one_out
    facts = {"rows": len(rows), "groups": len(groups), "group_rows": settings.rows, "loo_steps": settings.steps}
    return {**facts, "mean_effect": sizes, **judge(setting, rows, setting.member(groups, rows), effects)}


def _drawn(setting: Setting) -> tuple[np.ndarray, list[np.ndarray]]:
    settings, seed = setting.config.leave_one_out, setting.config.seed
    rows = draws.candidates(setting.candidates, settings.candidates, seed)
    return rows, draws.groups(rows, settings.groups, settings.rows, seed)
