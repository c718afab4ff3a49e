"""From a run directory to everything that its report says.

A part of the run that is not there yet leaves its part of the report out, with the command that makes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from influray.config import Config, load_config
from influray.data.catalogue import Catalogue
from influray.data.quarantine import read_quarantine
from influray.evaluation.known_answer import KnownAnswer, known_answers, task_scores
from influray.evaluation.overlap import jaccard
from influray.protocols import ArtifactMismatch
from influray.report.data import (
    LeftOut,
    Quarantine,
    ReportData,
    SelectionFacts,
    Step,
    TaskExamples,
    TaskFacts,
)
from influray.report.evaluations import read_evaluations
from influray.report.examples import examples_of
from influray.report.finding import finding
from influray.report.selections import Pool, committed, selection_facts
from influray.store.artifact import read_manifest
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory

QUARANTINE_FIRST = 12  # rows of it that the page shows
QUARANTINE_GROUPS = 20
# What differs from row to row within one reason: quoted things, numbers, places.
_PARTICULAR = re.compile(r"""'[^']*'|"[^"]*"|\S+:\d+|\d+""")


@dataclass
class Readings:
    """What of a run can be read: None for a part that is not there."""

    run: RunDirectory
    config: Config
    pool: Pool | None
    attribution: Attribution | None
    missing: dict[str, str] = field(default_factory=dict)


def collect(run_dir: str | Path) -> ReportData:
    """Return all that the report of a run says.

    Raises:
        ConfigError: there is no config.yaml in `run_dir`, or it is wrong.
        ArtifactMismatch: a part that is there cannot be read, or does not belong to the others.
    """
    readings = open_run(run_dir)
    run, config, missing = readings.run, readings.config, readings.missing
    selections, chosen = _selections(readings)
    known, examples = _influence(readings, chosen)
    tuned = read_evaluations(run, {s.name: s.style for s in selections})
    if not tuned:
        missing["tuned"] = "influray evaluate"
    recorded = run.read()
    # The step that writes this page is still going on; what an earlier one took would make two pages differ.
    steps = tuple(_step(name, facts) for name, facts in recorded["steps"].items() if name != "report")
    tasks = tuple(_task_facts(readings))
    return ReportData(
        name=run.path.name,
        made=max((str(step.facts.get("started", "")) for step in steps), default=""),
        model=config.model.base,
        finding=finding(selections, tuned),
        tasks=tasks,
        targets=sum(task.columns for task in tasks),
        pool=readings.pool.facts() if readings.pool else None,
        selections=selections,
        overlap=tuple(tuple(jaccard(a.ids, b.ids) for b in selections) for a in selections),
        tuned=tuned,
        known=known,
        examples=examples,
        quarantine=_quarantine(run.quarantine_path),
        left_out=_left_out(readings.attribution),
        steps=steps,
        versions=recorded.get("versions", {}),
        host=recorded.get("host", {}),
        missing=missing,
    )


def open_run(run_dir: str | Path) -> Readings:
    """Return the parts of a run that are there. Raises as `collect`."""
    run = RunDirectory(run_dir)
    readings = Readings(run, load_config(run.config_path), None, None)
    if read_manifest(run.data("pool")) is None:
        readings.missing["pool"] = "influray select"
    else:
        readings.pool = Pool(Catalogue(run.data("pool")))
    if read_manifest(run.attribution) is None:
        readings.missing["attribution"] = "influray score"
    else:
        readings.attribution = Attribution(run.attribution)
    return readings


def _selections(readings: Readings) -> tuple[tuple[SelectionFacts, ...], dict[str, dict[int, int]]]:
    names = committed(readings.run, [selector.name for selector in readings.config.selectors])
    if readings.pool is None or not names:
        readings.missing["selections"] = "influray select"
        return (), {}
    found, chosen = [], {}
    for place, name in enumerate(names):
        facts, row_n = selection_facts(readings.run, name, place, readings.pool, readings.attribution)
        found.append(facts)
        chosen[name] = {int(row): rank for rank, row in enumerate(row_n, start=1)}
    return tuple(found), chosen


def _influence(
    readings: Readings, chosen: Mapping[str, Mapping[int, int]]
) -> tuple[tuple[KnownAnswer, ...], tuple[TaskExamples, ...]]:
    """The known-answer check and the examples: one pass over the matrix serves both."""
    attribution, pool = readings.attribution, readings.pool
    if attribution is None or pool is None:
        return (), ()
    tasks, row_N, score_NG = task_scores(attribution, attribution.groups, attribution.stats)
    if len(row_N) and row_N[-1] >= len(pool.id_N):
        raise ArtifactMismatch(
            f"{attribution.folder}: holds row {row_N[-1]}, but the pool's catalogue has {len(pool.id_N)} rows; "
            "run `influray score` again"
        )
    used = Counter(g for g, u in zip(attribution.groups, attribution.stats.used_T, strict=True) if u)
    expected = {task: target.expected_sources for task, target in readings.config.data.targets.items()}
    known = known_answers(tasks, score_NG, pool.source_N[row_N].tolist(), expected, used)
    return tuple(known), examples_of(attribution, tasks, row_N, score_NG, pool, chosen)


def _task_facts(readings: Readings) -> list[TaskFacts]:
    attribution = readings.attribution
    if attribution is None:
        return [TaskFacts(task, 0, 0) for task in readings.config.data.targets]
    columns = Counter(attribution.groups)
    used = Counter(g for g, u in zip(attribution.groups, attribution.stats.used_T, strict=True) if u)
    return [TaskFacts(task, columns[task], used[task]) for task in columns]


def _left_out(attribution: Attribution | None) -> tuple[LeftOut, ...]:
    if attribution is None:
        return ()
    return tuple(
        LeftOut(attribution.groups[j], attribution.target_ids[j], reason)
        for j, reason in attribution.stats.left_out().items()
    )


def _quarantine(path: Path) -> Quarantine | None:
    """The counts of the quarantine and its first rows.

    Reasons are counted after what is particular to a row (quoted texts, places, numbers) has become an ellipsis.
    """
    if not path.exists():
        return None
    entries = read_quarantine(path)
    groups = Counter((str(e["split"]), str(e["stage"]), general(str(e["reason"]))) for e in entries)
    common = tuple((*key, number) for key, number in groups.most_common())
    more = max(0, len(common) - QUARANTINE_GROUPS)
    return Quarantine(len(entries), common[:QUARANTINE_GROUPS], more, tuple(entries[:QUARANTINE_FIRST]))


def general(reason: str) -> str:
    """Return a reason without what belongs to one row."""
    return _PARTICULAR.sub("\u2026", reason)


def _step(name: str, facts: Mapping[str, Any]) -> Step:
    seconds = facts.get("seconds")
    return Step(name, str(facts.get("status", "")), None if seconds is None else float(seconds), dict(facts))
