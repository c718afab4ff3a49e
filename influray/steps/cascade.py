"""cascade: a cheap pass over the whole pool, a run of its own in RUN/cascade, that says which rows get features."""

from __future__ import annotations

from influray.config import Config
from influray.registry import WARMED, featurizer_reads
from influray.steps.cheap_pass import LAST, PASSED, cheap_run, description, in_words_of_the_run, subject_of
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Recorded, Step
from influray.store.artifact import fingerprint, require_manifest
from influray.store.run_directory import RunDirectory
from influray.store.selection import TABLE


def cascade(context: StepContext) -> StepResult:
    """Make the cheap pass, or what of it is not there yet."""
    from influray.steps import steps_until
    from influray.steps.running import run_steps

    config, directory = cheap_run(context.config, context.directory)
    with directory.hold():
        directory.begin()
        before = directory.read()["steps"]
        inner = context.beside(config, directory, until=LAST)
        inner.within = "cascade/"
        with in_words_of_the_run(context.config):
            run_steps(steps_until(LAST, config), inner, subject_of(config, directory))
        skipped = before == directory.read()["steps"]
    manifest = require_manifest(directory.selection(PASSED), "run")
    rows, passed = require_manifest(directory.attribution, "run")["rows"], manifest["rows"]
    table = next(one["sha256"] for one in manifest["beside"] if one["file"] == TABLE)
    pool = require_manifest(directory.data("pool"), "run")["digest"]
    facts = {"rows": rows, "passed": passed, **description(context.config)}
    made = fingerprint({"pool": pool, "rows": rows, "selection": table})
    artifacts = [f"cascade/{name}/manifest.json" for name in ("data/pool", f"selection/{PASSED}")]
    return StepResult(made, skipped, facts, artifacts)


def _stale(config: Config, directory: RunDirectory, recorded: Recorded) -> str:
    """Return the first step of the cheap pass that is to be made again, and why."""
    from influray.steps import steps_until
    from influray.steps.states import step_states

    cheap, place = cheap_run(config, directory)
    states = step_states(cheap, place)
    for step in steps_until(LAST, cheap):
        if states[step.name] != "done":
            return f"{step.name} of the cheap pass{states[step.name].removeprefix('to do')}"
    return ""


def _describe(config: Config) -> str:
    section = config.cascade
    if section is None:
        return "not asked for"
    cheap = description(config)["by"]
    warmup = section.warmup or config.warmup
    again = featurizer_reads(section.features.featurizer) in WARMED and not warmup.checkpoints
    how = f", warmup of {warmup.epochs} epochs" if again else ""
    return f"{', '.join(cheap)}{how}; {section.share:.1%} of the rows pass"


CASCADE = Step("cascade", cascade, ("cascade",), _describe, _stale, section="cascade")
