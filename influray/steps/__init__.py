"""The steps of a run: what each is made from, its fingerprint, and the call that makes it.

A step takes a StepContext and returns a StepResult; `skipped` says that the committed artifact was already the right
one. Nothing here knows Ray: the runtime is called with tasks, folders and plain config.
"""

from __future__ import annotations

from collections.abc import Callable

from influray.steps.context import StepContext, StepResult
from influray.steps.data import data
from influray.steps.featurize import featurize
from influray.steps.index import renew
from influray.steps.report import report
from influray.steps.score import score
from influray.steps.select import select
from influray.steps.train import evaluate, tune, warmup

__all__ = ["TABLE", "StepContext", "StepResult"]

TABLE: dict[str, Callable[[StepContext], StepResult]] = {
    "data": data,
    "warmup": warmup,
    "featurize": featurize,
    "score": score,
    "select": select,
    "tune": tune,
    "evaluate": evaluate,
    "index": renew,
    "report": report,
}
