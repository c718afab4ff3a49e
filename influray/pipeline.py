"""The algorithm box: the steps of a run, what each is made from, and what is done already.

A step looks at the fingerprint of its inputs and of its part of the config; where its artifact carries the same one,
nothing is done. Ray and the model are started by the first step that needs them; a finished run that is repeated ends
after hashing its files.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.config import Config, load_config
from influray.progress import open_progress
from influray.protocols import ConfigError
from influray.runs import Run, admit, located, open_run, resolve
from influray.steps import StepContext, steps_until
from influray.steps.cheap_pass import cheap_run
from influray.steps.checks_of_config import asked_for
from influray.steps.finished import is_finished, read_digest, record_finished
from influray.steps.index import INDEX
from influray.steps.index import index as build_index
from influray.steps.preflight import Subject, check_config, check_data
from influray.steps.report import REPORT
from influray.steps.running import run_steps
from influray.steps.subject import settle_checkpoints
from influray.store.artifact import naming_full_disk, require_manifest, whole_manifest
from influray.store.mirror import present
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from rich.console import Console

    from influray.data.inspection import View
    from influray.planning.plan import Plan
    from influray.report.data import CurveFacts
    from influray.report.targets import TargetCover
    from influray.report.validation import Validation
    from influray.validation.mixture import Mixture
logger = logging.getLogger(__name__)


def run(
    config: str | Path | Config | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    until: str = "report",
    address: str | None = None,
    console: Console | None = None,
) -> Run:
    """Run a config up to a step and return the run. What is committed and unchanged is not done again.

    Args:
        config: a YAML file, a parsed config, or a plain mapping.
        overrides: dotted keys -> values, as `--set`.
        run_dir: in place of the config's.
        until: a step (cascade, data, warmup, featurize, score, select, tune, evaluate), `report-only`, or `report`.
        address: a running Ray cluster; by default the one this process is a job of, else a local one.
        console: a rich console for progress; None logs only.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend.
    """
    this = resolve(config, overrides, run_dir)
    steps, given = steps_until(until, this.config), this.config
    names = tuple(step.name for step in steps)
    if until != "data":  # which reads no model
        asked_for(Subject(this.config, this.directory, names, until))
        if is_finished(this.config, this.directory, steps):
            logger.info("%s: nothing to do up to %s", this.directory.address, until)
            return replace(this, config=settle_checkpoints(given))
    this = replace(this, config=settle_checkpoints(given))
    subject = Subject(this.config, this.directory, names, until)
    known = check_config(subject)
    read = read_digest(given, this.directory) if until != "data" else None
    with naming_full_disk(this.directory.path), this.directory.hold(), contextlib.ExitStack() as stack:
        this.directory.begin()
        progress = stack.enter_context(open_progress(this.directory.logs, console))
        context = StepContext(this.config, this.directory, until, progress, stack, address)
        for note in known:
            logger.warning("%s", note)
        run_steps(steps, context, subject)
        record_finished(this.directory, steps, read)
    return this


def curves(
    config: str | Path | Config | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    selection: str | None = None,
    budget: int | float | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> tuple[tuple[CurveFacts, ...], tuple[Path, Path]]:
    """Run a config up to the selection; return the budget curves and (curves.html, curves.json) of RUN/report.

    Args:
        selection: one of the config's, by name; None takes all.
        budget: how far a curve goes, examples or a fraction of the matrix' rows; None ends it with the selection.

    Raises:
        ConfigError, DataError, ArtifactMismatch: as `run`; no such selection, or a budget that does not fit.
    """
    from influray.report.curve_sheet import write_curves
    from influray.report.curves import budget_curves, check_budget, check_selection

    # Hours before the curves would say it.
    wanted = resolve(config, overrides, run_dir)
    check_selection(selection, [selector.name for selector in wanted.config.selectors])
    check_budget(budget)
    this = run(config, overrides, run_dir=run_dir, until="select", address=address, console=console)
    with this.directory.hold():
        found = budget_curves(this.directory.path, selection, budget)
        return found, write_curves(this.directory.path, found)


def index(
    run_dir: str | Path,
    kind: str = "auto",
    *,
    address: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Build the index of a scored run where it is not there yet, and return its manifest.

    Args:
        kind: as `build_index`.

    Raises:
        ConfigError, ArtifactMismatch: as `build_index`; or `run_dir` is no run.
    """
    this = open_run(run_dir)
    with this.directory.hold(), contextlib.ExitStack() as stack:
        progress = stack.enter_context(open_progress(this.directory.logs, console))
        context = StepContext(this.config, this.directory, "index", progress, stack, address)
        run_steps((replace(INDEX, run=functools.partial(build_index, kind=kind)),), context)
        return require_manifest(this.directory.index, "index")


@contextlib.contextmanager
def _beside(
    run_dir: str | Path, settings: Mapping[str, Any] | None, address: str | None, console: Console | None
) -> Iterator[StepContext]:
    """Hold a scored run and yield its context, with dotted `settings` of the section `validate` over its own."""
    this = open_run(run_dir)
    given = {f"validate.{key}": value for key, value in (settings or {}).items()}
    changed = load_config(this.directory.config_path, {"run_dir": this.directory.address, **given})
    admit(changed, this.directory.path, given)
    this.directory.require_made("data", "warmup", "featurize", "score")
    with naming_full_disk(this.directory.path), this.directory.hold(), contextlib.ExitStack() as stack:
        progress = stack.enter_context(open_progress(this.directory.logs, console))
        yield StepContext(changed, this.directory, "validate", progress, stack, address)


def _show_in_report(context: StepContext) -> None:
    """Write the report of a run again where it has one: it shows what was found beside the steps."""
    if present(context.directory.report).exists():
        own = load_config(context.directory.config_path, {"run_dir": context.directory.address})
        run_steps((REPORT,), context.beside(own, context.directory))


def validate(
    run_dir: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    address: str | None = None,
    console: Console | None = None,
) -> Validation:
    """Carry out the experiments of a scored run's section `validate`, with dotted `settings` of it over its own.

    Results are written to RUN/validate; where the run has a report, it is written again and shows them.

    Args:
        settings: keys of the section -> values, such as {"lds.subsets": 24, "seeds": [0, 1, 2]}.
        address, console: as `run`.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend: a wrong setting, a run that is not scored.
    """
    from influray.report.validation import Validation
    from influray.validation.experiments import VALIDATE

    with _beside(run_dir, settings, address, console) as context:
        run_steps((VALIDATE,), context)
        _show_in_report(context)
        return Validation.read(context.directory, context.config.validation.experiments)


def blame(
    run_dir: str | Path,
    failing: Sequence[str],
    passing: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    selection: str = "",
    rows: int | float = 0.05,
    draws: int = 3,
    prove: bool = True,
    address: str | None = None,
    console: Console | None = None,
) -> Validation:
    """Find the rows of a selection that are behind failing records, and measure what their removal does.

    Args:
        failing, passing: files of records, in any form that the pool may have.
        settings: keys of the section `validate`, such as {"seeds": [0, 1, 2], "tune.steps": 50}.
        selection: whose rows are looked at, by default the config's first; "full" is the whole pool.
        rows: how many suspects: rows, or a fraction of the selection's.
        draws: random removals of as many tokens that theirs is compared with.
        prove: False lists suspects and tunes nothing.
        address, console: as `run`.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend.
    """
    from influray.report.validation import Validation
    from influray.validation.blame import Asked
    from influray.validation.blame import blame as find

    asked = Asked(tuple(failing), tuple(passing), selection, rows, draws, prove)
    with _beside(run_dir, settings, address, console) as context:
        with context.progress.step("blame"):
            find(context, asked)
        _show_in_report(context)
        return Validation.read(context.directory, ["blame"])


def pilot(
    config: str | Path | Config | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    recipes: Sequence[str] = (),
    only: Sequence[str] = (),
    address: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> tuple[Validation, Config | None]:
    """Try cheaper recipes on a sample of a config's pool; return what they keep and cost, and the cheapest config.

    Args:
        recipes, only: further ones, each "NAME KEY=VALUE ..."; names of those tried, the full one in any case.
        options: rows, seed, selector, least, tune, device, workers, as in `influray.planning.pilot.Asked`.

    The config is that of the cheapest recipe that keeps `least` of the merit, None where none does. Raises as `blame`.
    """
    from influray.planning import recipes as of
    from influray.planning.pilot import Asked
    from influray.planning.pilot import pilot as find
    from influray.planning.sample import PILOT
    from influray.report.validation import Validation

    this = resolve(config, overrides, run_dir)
    full = of.whole(settle_checkpoints(this.config))
    tried = of.chosen([*of.usual(full), *of.parse(recipes)], only)
    for one in tried:
        admit(wanted := one.of(full), wanted.run_directory, one.settings)
    asked = Asked(recipes=tuple(tried), **options)
    with naming_full_disk(this.directory.path), this.directory.hold(), contextlib.ExitStack() as stack:
        this.directory.begin()
        progress = stack.enter_context(open_progress(this.directory.logs, console))
        context = StepContext(full, this.directory, PILOT, progress, stack, address)
        source = this.directory
        if this.config.cascade is not None:  # its pool is what passed
            source = RunDirectory(this.directory.validation / PILOT / "whole")
        find(context, source, asked)
        found = Validation.read(this.directory, [PILOT])
        _show_in_report(context)
    best = next((one for one in tried if one.name == found.results[PILOT]["cheapest"]), None)
    return found, best and best.of(full)


def value(
    run_dir: str | Path,
    data: Sequence[str],
    *,
    to: str | Path | None = None,
    address: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Price rows that a finished run has never seen: what they would add to one of its selections, as plain JSON.

    Args:
        data: files of rows, in any form that the pool may have.
        to: a file for the records of the best subset, as they were read, in order of choice.
        options: selection, rows, budget, near, as in `influray.planning.value.Asked`.

    Returns and raises as `influray.planning.value.value`.
    """
    from influray.planning import value as of

    with _beside(run_dir, None, address, console) as context:
        found = of.value(context, of.Asked(tuple(data), **options))
        if to is not None:
            of.write_best(context, found, Path(to))
        return found


def audit(run_dir: str | Path) -> tuple[Run, dict[str, Any]]:
    """Audit a scored run; return it and what was found, as in RUN/report/audit.json. Raises as `report.audit.audit`."""
    from influray.report.audit import audit as look_over

    this = located(run_dir)  # what was computed is looked at, and nothing that its config names
    with this.directory.hold():
        return this, look_over(this.directory.path)


def targets(run_dir: str | Path, keep: int | float, to: str | Path | None = None) -> tuple[TargetCover, list[Path]]:
    """Return which `keep` targets of a scored run stand for the others, and the files of their records in `to`.

    Raises: as `report.targets.cover_targets` and `write_targets`.
    """
    from influray.report.targets import cover_targets, write_targets

    this = located(run_dir)
    with this.directory.hold():
        found = cover_targets(this.directory.path, keep)
        return found, [] if to is None else write_targets(this.directory.path, found, to)


def mixture(run_dir: str | Path, budget: int | None = None, repeats: int = 10, seed: int = 0) -> Mixture:
    """Return the ratios of sources that a run's selections and targets imply. Raises: as `validation.mixture.mix`."""
    from influray.validation.mixture import mix

    this = open_run(run_dir)
    with this.directory.hold():
        return mix(this.config, this.directory, budget, repeats, seed)


def plan(
    config: str | Path | Config | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
) -> Plan:
    """Return what a run would take on this machine, or on `workers` of `device`, and what of it is done.

    Nothing is started or written. Of a finished step the plan holds what it took beside what was estimated.

    Raises:
        ConfigError, DataError: as `run`; no such device.
    """
    from influray.planning.plan import make_plan

    this = resolve(config, overrides, run_dir)
    cfg = settle_checkpoints(this.config)
    subject = Subject(cfg, this.directory, tuple(step.name for step in steps_until("report", cfg)))
    known = check_config(subject)
    made = make_plan(cfg, this.directory, device, workers)
    if any(step.name == "data" and step.state == "done" for step in made.steps):  # the catalogues are the config's
        known += check_data(subject)
    return replace(made, notes=(*made.notes, *known))


def inspect(
    config: str | Path | Config | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    split: str = "pool",
    row: int | None = None,
    identity: str | None = None,
) -> View:
    """Return a record of the catalogue as the model sees it; makes the catalogue first where it is not there.

    Of a run with a cascade the pool's rows are those that passed; before that is known, those of the whole pool.
    """
    from influray.data.inspection import view

    if (row is None) == (identity is None):
        raise ConfigError("inspect: give --row or --id, one of them")
    if split not in ("pool", "target", "test"):
        raise ConfigError(f"inspect: --split is pool, target or test (found {split!r})")
    this = resolve(config, overrides, run_dir)
    if this.config.cascade is not None and split == "pool" and whole_manifest(this.directory.data("pool")) is None:
        # A look at a record waits for no cheap pass: until it is made, rows are those of the whole pool.
        this.directory.claim()
        cheap, place = cheap_run(this.config, this.directory)
        this = run(cheap, run_dir=place.path, until="data")
    else:
        this = run(config, overrides, run_dir=run_dir, until="data")
    from influray.data.chat import split_encoder
    from influray.model.loading import load_tokenizer

    tokenizer = load_tokenizer(this.config.model)
    encoder = functools.partial(split_encoder, this.config, tokenizer, split)
    return view(this.directory.data(split), tokenizer, encoder, row=row, identity=identity)
