"""The experiments by name, and the step that carries them out: scores first, then retrainings, then tables.

An experiment lists its retrainings, which all share by what they are made from, and makes its result of their losses.
One that needs none lists none.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import threadpoolctl

from influray.model.schedule import mean_rates
from influray.protocols import ConfigError, DamagedArtifact
from influray.runtime.retraining_worker import Bench, Retraining
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Step
from influray.store.artifact import fingerprint, read_sealed, write_sealed
from influray.store.checks import set_aside
from influray.store.mirror import local, present
from influray.store.run_directory import RunDirectory
from influray.validation import lds, leave_one_out, recall, removal, stability
from influray.validation.scorers import RANDOM, matrix_of
from influray.validation.setting import Setting

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """An experiment. `check` raises ConfigError where it cannot be made, which is known before any retraining."""

    retrainings: Callable[[Setting], list[Retraining]]
    result: Callable[[Setting, list[Retraining]], dict[str, Any]]
    check: Callable[[Setting], None] = lambda setting: None


def _none(setting: Setting) -> list[Retraining]:
    return []


def _removal(which: removal.Which) -> Kind:
    return Kind(
        functools.partial(removal.retrainings, which=which),
        functools.partial(removal.result, which=which),
        functools.partial(removal.check, which=which),
    )


EXPERIMENTS: Mapping[str, Kind] = {
    "lds": Kind(lds.retrainings, lds.result),
    "remove": _removal("remove"),
    "keep": _removal("keep"),
    "leave_one_out": Kind(leave_one_out.retrainings, leave_one_out.result, leave_one_out.check),
    "recall": Kind(_none, recall.result, recall.check),
    "stability": Kind(_none, stability.result, stability.check),
}


def validate(context: StepContext) -> StepResult:
    """Carry out the experiments of the section `validate` and write RUN/validate/NAME.json for each.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend.
    """
    setting = Setting(context)
    names = setting.config.experiments
    scorers = setting.scorers  # wrong names are told before anything is computed
    for name in names:
        EXPERIMENTS[name].check(setting)
    for one in scorers:
        if one.scorer != RANDOM:
            with context.progress.step(f"scores of {one.name}"):
                matrix_of(context, one)
    jobs = {name: EXPERIMENTS[name].retrainings(setting) for name in names}
    for name, found in jobs.items():
        require_rates(name, found)
    every = list(dict.fromkeys(one for found in jobs.values() for one in found))
    made = retrain_missing(context, setting.bench, every)
    results = {name: _result(setting, name, jobs[name]) for name in names}
    facts = {"experiments": list(names), "retrainings": len(every), "carried_out": made}
    # Those of other calls stay, and are to be missed where they are gone.
    there = [name for name in EXPERIMENTS if name in results or present(result_path(context.directory, name)).exists()]
    files = [f"validate/{name}.json" for name in there]
    return StepResult(fingerprint([one["fingerprint"] for one in results.values()]), False, facts, files)


def retrain_missing(context: StepContext, bench: Bench, jobs: Sequence[Retraining]) -> int:
    """Make those of the retrainings that are not committed; return how many."""
    every = list(dict.fromkeys(jobs))
    todo = [one for one in every if bench.committed(one) is None]
    progress = context.progress.current
    progress.expect(len(every), "retrainings", done=len(every) - len(todo))
    if todo:
        from influray.runtime.retraining import retrain

        logger.info("%d of %d retrainings to do", len(todo), len(every))
        assert context.cluster
        retrain(bench, todo, context.resources, progress.on_event, progress.on_jobs)
    return len(todo)


def result_path(directory: RunDirectory, name: str) -> Any:
    """Return the file of an experiment's result."""
    return directory.validation / f"{name}.json"


def read_result(directory: RunDirectory, name: str) -> dict[str, Any] | None:
    """Return the result of an experiment, None where there is none. Raises DamagedArtifact."""
    try:
        return read_sealed(result_path(directory, name))
    except FileNotFoundError:
        return None


def require_rates(name: str, jobs: Sequence[Retraining]) -> None:
    """Raise ConfigError where a retraining is so short that all of it is at learning rate 0."""
    for rows, section in {(len(one.rows), one.section.model_copy(update={"seed": 0})) for one in jobs}:
        if not any(mean_rates(section, rows)):
            raise ConfigError(
                f"validate.tune: of {name} {rows} rows in batches of {section.batch_size} are so few optimizer steps "
                f"that the rate, which rises from 0 (warmup_ratio {section.warmup_ratio}), is 0 in all; set "
                "validate.tune to {warmup_ratio: 0}, or to more steps"
            )


def _result(setting: Setting, name: str, jobs: Sequence[Retraining]) -> dict[str, Any]:
    setting.context.progress.current.note(f"the table of {name}")
    found = {
        "experiment": name,
        "candidates": len(setting.candidates),
        "tasks": list(setting.task_names),
        "tuning_seeds": list(setting.config.seeds),
        "seed": setting.config.seed,
        "steps": setting.context.config.retraining.steps,
        "retrainings": [setting.bench.fingerprint(one) for one in jobs],
    }
    # Thousands of small products: threads would wait for each other (15 times as long on two busy cores), and rounding
    # would follow their number.
    with threadpoolctl.threadpool_limits(1):
        found |= EXPERIMENTS[name].result(setting, list(jobs))
    sealed = {**found, "fingerprint": fingerprint(found)}
    path = result_path(setting.context.directory, name)
    try:
        before = read_result(setting.context.directory, name)
    except DamagedArtifact as error:
        logger.warning("%s", error)
        set_aside(local(error.address))
        before = None
    if before is None or before.get("fingerprint") != sealed["fingerprint"]:
        write_sealed(path, sealed)
    return sealed


VALIDATE = Step("validate", validate)  # none of a run's: it runs when it is asked for
