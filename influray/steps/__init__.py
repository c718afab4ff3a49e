"""The steps of a run, in order.

A step takes a StepContext and returns a StepResult; `skipped` says that the committed artifact was already the right
one. Nothing here knows Ray: the runtime is called with tasks, folders and plain config.
"""

from __future__ import annotations

from influray.config import Config
from influray.protocols import ConfigError
from influray.steps.cascade import CASCADE
from influray.steps.context import StepContext, StepResult
from influray.steps.data import DATA
from influray.steps.featurize import FEATURIZE
from influray.steps.report import REPORT
from influray.steps.score import SCORE
from influray.steps.select import SELECT
from influray.steps.step import Step
from influray.steps.train import EVALUATE, TUNE, WARMUP

__all__ = ["STEPS", "Step", "StepContext", "StepResult", "steps_until"]

STEPS: tuple[Step, ...] = (CASCADE, DATA, WARMUP, FEATURIZE, SCORE, SELECT, TUNE, EVALUATE, REPORT)


def steps_until(until: str, config: Config) -> tuple[Step, ...]:
    """Return the steps of a run of the config up to one of them; `report-only` leaves out tuning.

    Raises:
        ConfigError: no step is called so.
    """
    known = [step.name for step in STEPS]
    if until not in (*known, "report-only"):
        raise ConfigError(f"until: no step is called {until!r} (known: {', '.join((*known, 'report-only'))})")
    if until == "report-only":
        return tuple(step for step in STEPS if step.section != "tune" and step.wanted(config))
    return tuple(step for step in STEPS[: known.index(until) + 1] if step.wanted(config))
