"""How steps are run: in order, what each leaves written to run.json, damage repaired on the way.

A cheap pass is run by this too, within the first step of the run that it is for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from influray.config import dump_config
from influray.protocols import DamagedArtifact
from influray.steps.context import StepContext
from influray.steps.index import INDEX, was_built
from influray.steps.preflight import Subject, check_data
from influray.steps.states import basis
from influray.steps.step import Step
from influray.store.checks import set_aside, step_of
from influray.store.run_directory import now

if TYPE_CHECKING:
    from influray.progress import StepProgress

MAX_REPAIRS = 30  # times that damage found by a reader sends a run back to its first step; more is a failing disk
logger = logging.getLogger(__name__)


def run_steps(steps: Sequence[Step], context: StepContext, subject: Subject | None = None) -> None:
    """Write the config of a run (`subject`), if it is one, and run the steps in order.

    Where a file turns out to be damaged that one of the steps makes, or the run as a whole, it is set aside and they
    begin again: what is whole is not done again, so that this costs what the file costs.
    """
    for repairs_left in reversed(range(MAX_REPAIRS + 1)):
        try:
            if subject is not None:
                context.directory.write_config(dump_config(subject.config))
            for step in steps:
                if step.name == "report" and context.until == "report" and was_built(context.directory):
                    _timed(INDEX, context)
                _timed(step, context)
                if step.name == "data" and subject is not None:
                    for note in check_data(subject):
                        logger.warning("%s", note)
        except DamagedArtifact as error:
            mends = error.address and step_of(error.address) in ("", "index", *(step.name for step in steps))
            if not repairs_left or not mends:
                raise
            logger.warning("%s", error)
            set_aside(error.address)
        else:
            return


def _timed(step: Step, context: StepContext) -> None:
    """Run one step and write its facts to run.json; a step that did nothing keeps its old facts."""
    started, clock = now(), time.perf_counter()
    directory = context.directory
    with context.progress.step(context.within + step.name) as counted:
        try:
            result = step.run(context)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            facts = {"status": status, "started": started, "seconds": round(time.perf_counter() - clock, 3)}
            facts |= memory_facts(counted)
            try:
                directory.record_step(step.name, **facts, message=f"{type(error).__name__}: {error}"[:2000])
            except OSError as other:  # a full disk, say: what went wrong first is what counts
                logger.warning("run.json cannot be written: %s", other)
            raise
    seconds = time.perf_counter() - clock
    recorded = directory.read()["steps"]
    before, made_from = recorded.get(step.name, {}), basis(step, context.config, recorded)
    same = before.get("fingerprint") == result.fingerprint and before.get("artifacts") == list(result.artifacts)
    if result.skipped and same and before.get("status") == "done":
        logger.info("%s: unchanged, nothing to do", step.name)
        if before.get("made_from") != made_from:  # which changed nothing
            directory.record_step(step.name, **{**before, "made_from": made_from})
        return
    facts = {"fingerprint": result.fingerprint, "started": started, "seconds": round(seconds, 3), **result.facts}
    facts |= memory_facts(counted)
    for unit in ("rows", "tokens"):
        if isinstance(result.facts.get(unit), int) and seconds > 0 and not result.skipped:
            facts[f"{unit}_per_second"] = round(result.facts[unit] / seconds, 1)
    directory.record_step(step.name, status="done", artifacts=list(result.artifacts), made_from=made_from, **facts)


def memory_facts(counted: StepProgress) -> dict[str, int | None]:
    """Return what a step has to say of workers that were killed for memory, nothing where none was."""
    now = counted.snapshot()
    return {"memory_kills": now.memory_kills, "side_by_side": now.side_by_side} if now.memory_kills else {}
