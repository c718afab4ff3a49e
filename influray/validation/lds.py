"""lds: random subsets of the candidates, trained on one by one; every scorer is judged on the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from influray.runtime.retraining_worker import Retraining
from influray.validation import draws
from influray.validation.agreement import judge
from influray.validation.setting import Setting


def subsets(setting: Setting) -> list[np.ndarray]:
    """Return the catalogue rows of every subset."""
    config = setting.config
    return [
        draws.subset(setting.candidates, config.lds.share, config.seed, number) for number in range(config.lds.subsets)
    ]


def retrainings(setting: Setting) -> list[Retraining]:
    """Return the retrainings, subset by subset, each with every seed."""
    return [one for rows in subsets(setting) for one in setting.with_every_seed(rows)]


def result(setting: Setting, done: list[Retraining]) -> dict[str, Any]:
    """Return the table of scorers, as plain JSON."""
    drawn, config = subsets(setting), setting.config
    effects = {
        split: -losses.reshape(len(drawn), len(config.seeds), -1).transpose(1, 0, 2)
        for split, losses in setting.losses(done).items()
    }
    member_MN = setting.member(drawn, setting.candidates)
    facts = {"subsets": len(drawn), "rows": len(drawn[0]), "share": config.lds.share}
    return {**facts, **judge(setting, setting.candidates, member_MN, effects)}
