"""What fine-tuning on each selection gave, over its seeds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from influray.protocols import ArtifactMismatch
from influray.report.data import Over, Tuned
from influray.store.artifact import read_sealed
from influray.store.mirror import present_folder
from influray.store.run_directory import RunDirectory

FULL, BASE = "full", "base"  # the whole pool, and the model before any tuning
_FILE = re.compile(r"seed-(\d+)\.json")


def read_evaluations(
    run: RunDirectory, styles: Mapping[str, str], roles: Mapping[str, str] | None = None
) -> tuple[Tuned, ...]:
    """Return what was evaluated of `styles` (selection -> colour class) in that order, then "full" and "base".

    `roles` are those of the tasks that are not sought.

    Exact match is that of generated answers; where no task has any, it is the teacher-forced one.
    """
    names = {**styles, FULL: "cg", BASE: "cg"}
    found = {name: _by_seed(run.path / "evaluation" / name) for name in names}
    everything = [task for by_seed in found.values() for tasks in by_seed.values() for task in tasks.values()]
    generated = any(task.get("exact_match") is not None for task in everything)
    metric = "exact_match" if generated else "teacher_forced"
    return tuple(tuned(name, names[name], by_seed, metric, roles) for name, by_seed in found.items() if by_seed)


def tuned(
    name: str,
    style: str,
    by_seed: Mapping[int, Mapping[str, Mapping[str, Any]]],
    metric: str,
    roles: Mapping[str, str] | None = None,
) -> Tuned:
    """Return one row of results. `by_seed` maps a seed to task -> {"loss", `metric`, ...}.

    Macro numbers are means over the tasks that are sought, taken within a seed and then over the seeds.

    Raises:
        ArtifactMismatch: no task of those evaluated is sought.
    """
    tasks = list(next(iter(by_seed.values())))
    scored = [t for t in tasks if all(results[t].get(metric) is not None for results in by_seed.values())]
    others = {task: role for task, role in (roles or {}).items() if task in tasks}
    sought, scored_sought = ([task for task in some if task not in others] for some in (tasks, scored))
    if not sought:
        raise ArtifactMismatch(
            f"evaluation/{name}: of none of the tasks that are sought; run `influray evaluate` again"
        )
    loss = {t: over([results[t]["loss"] for results in by_seed.values()]) for t in tasks}
    exact = {t: over([results[t][metric] for results in by_seed.values()]) for t in scored}
    return Tuned(
        name=name,
        style=style,
        seeds=tuple(sorted(by_seed)),
        loss=loss,
        exact=exact,
        exact_metric=metric,
        macro_loss=over(_macros(by_seed, sought, "loss")),
        macro_exact=over(_macros(by_seed, scored_sought, metric)) if scored_sought else None,
        macro_losses=tuple(_macros(by_seed, sought, "loss")),
        spread_loss=statistics.pstdev(loss[task].mean for task in sought),
        spread_exact=statistics.pstdev(exact[task].mean for task in scored_sought) if scored_sought else None,
        roles=others,
    )


def _macros(by_seed: Mapping[int, Mapping[str, Mapping[str, Any]]], tasks: Sequence[str], metric: str) -> list[float]:
    return [statistics.fmean(results[task][metric] for task in tasks) for results in by_seed.values()]


def over(values: Sequence[float]) -> Over:
    """Return mean and ends of one number per seed."""
    return Over(statistics.fmean(values), min(values), max(values))


def _by_seed(folder: Path) -> dict[int, dict[str, Any]]:
    """Return seed -> task -> results of one evaluated model; tasks are the same for all its seeds."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(present_folder(folder).glob("seed-*.json")):
        match = _FILE.fullmatch(path.name)
        if not match:
            continue
        try:
            tasks = read_sealed(path)["tasks"]
        except KeyError as error:
            raise ArtifactMismatch(f"{path}: not an evaluation ({error!r}); run `influray evaluate` again") from error
        if not tasks:
            raise ArtifactMismatch(f"{path}: no task in it; run `influray evaluate` again")
        if found and set(tasks) != set(next(iter(found.values()))):
            raise ArtifactMismatch(f"{path}: other tasks than its neighbours have; run `influray evaluate` again")
        found[int(match[1])] = tasks
    return dict(sorted(found.items()))
