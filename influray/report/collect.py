"""From a run directory to everything that its report says.

A part of the run that is not there yet leaves its part of the report out, with the command that makes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from influray import formatting
from influray.data.quarantine import read_quarantine
from influray.evaluation.known_answer import KnownAnswer, known_answers, task_scores
from influray.features.epsilon_share import epsilon_text, stored_shares
from influray.protocols import ArtifactMismatch
from influray.registry import featurizer_reads
from influray.report.audit import read_audit
from influray.report.curves import committed_curves
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
from influray.report.readings import Readings, open_run
from influray.report.selections import committed, overlap, selection_facts
from influray.report.validation import Validation
from influray.store.artifact import whole_manifest
from influray.store.attribution import Attribution
from influray.store.mirror import present

QUARANTINE_FIRST = 12  # rows of it that the page shows
QUARANTINE_GROUPS = 20
# What differs from row to row within one reason: quoted things, numbers, places.
_PARTICULAR = re.compile(r"""'[^']*'|"[^"]*"|\S+:\d+|\d+""")


def collect(run_dir: str | Path) -> ReportData:
    """Return all that the report of a run says.

    Raises:
        ConfigError: there is no config.yaml in `run_dir`, or it is wrong.
        ArtifactMismatch: a part that is there cannot be read, or does not belong to the others.
    """
    readings = open_run(run_dir)
    run, config, missing = readings.run, readings.config, readings.missing
    selections, rows = _selections(readings)
    curves = committed_curves(readings.attribution, readings.pool, selections, rows)
    chosen = {name: {int(row): rank for rank, row in enumerate(row_n, start=1)} for name, row_n in rows.items()}
    known, examples = _influence(readings, chosen)
    tuned = read_evaluations(run, {s.name: s.style for s in selections}, config.data.roles)
    if not tuned:
        missing["tuned"] = "influray evaluate"
    recorded = run.read()
    # The step that writes this page is still going on; what an earlier one took would make two pages differ.
    steps = [_step(name, facts) for name, facts in recorded["steps"].items() if name != "report"]
    steps = tuple(sorted(steps, key=lambda step: str(step.facts.get("started", ""))))
    tasks = tuple(_task_facts(readings))
    return ReportData(
        name=run.path.name,
        made=max((str(step.facts.get("started", "")) for step in steps), default=""),
        model=config.model.base,
        features=_features(readings),
        finding=(*_unknown_to_base(recorded["steps"]), *finding(selections, tuned)),
        tasks=tasks,
        targets=sum(task.columns for task in tasks),
        pool=readings.pool.facts() if readings.pool else None,
        selections=selections,
        curves=curves,
        overlap=overlap(selections),
        tuned=tuned,
        known=known,
        examples=examples,
        quarantine=_quarantine(run.quarantine_path),
        left_out=_left_out(readings.attribution),
        steps=steps,
        versions=recorded.get("versions", {}),
        host=recorded.get("host", {}),
        missing=missing,
        audit=read_audit(run),
        propagation=readings.attribution.manifest.get("propagation") if readings.attribution else None,
        validation=Validation.there(run),
    )


def _selections(readings: Readings) -> tuple[tuple[SelectionFacts, ...], dict[str, np.ndarray]]:
    names = committed(readings.run, [selector.name for selector in readings.config.selectors])
    if readings.pool is None or not names:
        readings.missing["selections"] = "influray select"
        return (), {}
    found, rows = [], {}
    for place, name in enumerate(names):
        facts, rows[name] = selection_facts(readings.run, name, place, readings.pool, readings.attribution)
        found.append(facts)
    return tuple(found), rows


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


def _features(readings: Readings) -> tuple[str, ...]:
    """Say what the features are and, of Adam's directions, how much of them is epsilon's."""
    config, features = readings.config, readings.config.features
    if featurizer_reads(features.featurizer) != "checkpoints":
        return (features.featurizer,)
    manifest = whole_manifest(readings.run.warmup) or {"checkpoints": 0}
    count, projector = manifest["checkpoints"], features.projector
    facts = f"{features.direction} direction, {projector.name} to {projector.dimension} numbers"
    shares = stored_shares(readings.run, count)
    text = f"{features.featurizer}: {facts}, {count} checkpoint{'' if count == 1 else 's'}"
    return (text, epsilon_text(shares, config)) if shares else (text,)


def _task_facts(readings: Readings) -> list[TaskFacts]:
    attribution, roles = readings.attribution, readings.config.data.roles
    if attribution is None:
        return [TaskFacts(task, 0, 0, roles.get(task, "seek")) for task in readings.config.data.targets]
    columns = Counter(attribution.groups)
    used = Counter(g for g, u in zip(attribution.groups, attribution.stats.used_T, strict=True) if u)
    return [TaskFacts(task, columns[task], used[task], roles.get(task, "seek")) for task in columns]


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
    if not present(path).exists():
        return None
    entries = read_quarantine(path)
    groups = Counter((str(e["split"]), str(e["stage"]), general(str(e["reason"]))) for e in entries)
    common = tuple((*key, number) for key, number in groups.most_common())
    more = max(0, len(common) - QUARANTINE_GROUPS)
    return Quarantine(len(entries), common[:QUARANTINE_GROUPS], more, tuple(entries[:QUARANTINE_FIRST]))


def general(reason: str) -> str:
    """Return a reason without what belongs to one row."""
    return _PARTICULAR.sub("\u2026", reason)


def _unknown_to_base(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    tasks = steps.get("evaluate", {}).get("unknown_to_base", [])
    if not tasks:
        return []
    return [f"The base knows nothing of {formatting.listed(tasks)}, so what follows says little of a model that does."]


def _step(name: str, facts: Mapping[str, Any]) -> Step:
    seconds = facts.get("seconds")
    return Step(name, str(facts.get("status", "")), None if seconds is None else float(seconds), dict(facts))
