"""How many retrainings an experiment makes and of what size: arithmetic over the config, before anything is there."""

from __future__ import annotations

from dataclasses import dataclass

from influray.config import Config
from influray.config_validate import RemovalConfig


@dataclass(frozen=True)
class Size:
    """So many retrainings, each going through so many rows in all its steps."""

    retrainings: int
    rows: float


def sizes(config: Config, pool_rows: int) -> dict[str, Size]:
    """Return the size of every experiment of the section `validate`, on a pool of so many rows.

    Retrainings that two experiments share, or that are done, count in each: it is the most that there is to do.
    """
    section, tasks = config.validation, len(config.data.targets)
    seeds = len(section.seeds)
    candidates = pool_rows if section.candidates == "all" else min(pool_rows, section.candidates)

    def removal(settings: RemovalConfig, keep: bool) -> Size:
        named = tasks if settings.tasks == "all" else len(settings.tasks)
        taken = settings.rows if isinstance(settings.rows, int) else settings.rows * candidates
        rows = taken if keep else candidates - taken
        return Size(named * (2 + settings.draws) * seeds, _passed(config, rows))

    def lds() -> Size:
        return Size(section.lds.subsets * seeds, _passed(config, section.lds.share * candidates))

    def leave_one_out() -> Size:
        settings = section.leave_one_out
        return Size((1 + settings.groups) * seeds, settings.steps * config.retraining.batch_size)

    made = {
        "lds": lds,
        "remove": lambda: removal(section.remove, keep=False),
        "keep": lambda: removal(section.keep, keep=True),
        "leave_one_out": leave_one_out,
        "recall": lambda: Size(0, 0.0),
        "stability": lambda: Size(0, 0.0),  # what it costs are features and matrices
    }
    return {name: made[name]() for name in section.experiments}


def _passed(config: Config, rows: float) -> float:
    """Return the rows that a retraining on so many goes through."""
    settings = config.retraining
    return settings.steps * settings.batch_size if settings.steps is not None else settings.epochs * rows
