"""Selections side by side, of one run or of several: balance, overlap, shares of the sources, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from influray.evaluation.overlap import jaccard
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.collect import Readings, open_run
from influray.report.data import SelectionFacts, Tuned
from influray.report.evaluations import BASE, FULL, read_evaluations
from influray.report.formatting import ABSENT, count, listed, number, percent, signed, visible
from influray.report.selections import STYLES, committed, selection_facts

SOURCES = 8  # columns of shares; the largest over all selections


@dataclass(frozen=True)
class Comparison:
    """A table ready to print: texts, one row a selection. `notes` say how to read it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def side_by_side(self) -> Comparison:
        """Return the same table with one column a selection, which suits a narrow terminal."""
        turned = tuple(zip(self.columns, *self.rows, strict=True))
        return Comparison(turned[0], turned[1:], self.notes)


@dataclass(frozen=True)
class _Entry:
    label: str
    selection: SelectionFacts | None  # None for what was tuned on no selection: the full pool, the base
    tuned: Tuned | None
    base: Tuned | None


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Return the table of all selections of the runs given, or of those named as RUN/NAME.

    A whole run also brings its results of the full pool and of the base. Overlap is counted by record id.

    Raises:
        ConfigError: neither a run directory nor a selection of one.
        ArtifactMismatch: nothing is selected yet, or two runs share no record, so that there is nothing to compare.
    """
    if not runs:
        raise ConfigError("compare: no run given; name run directories, or selections as RUN/NAME")
    asked = [_resolve(Path(run)) for run in runs]
    opened: dict[Path, Readings] = {}
    for folder, _ in asked:
        if folder not in opened:
            opened[folder] = open_run(folder)
    _refuse_disjoint(opened)
    entries: list[_Entry] = []
    for folder, name in dict.fromkeys(asked):
        prefix = f"{folder.name}/" if len(opened) > 1 else ""
        entries += _entries(opened[folder], name, prefix)
    entries = list({entry.label: entry for entry in entries}.values())
    return _table(entries, several=len(opened) > 1)


def _resolve(path: Path) -> tuple[Path, str | None]:
    """Return (run directory, selection or None for all)."""
    path = path.resolve()
    if (path / "config.yaml").exists():
        return path, None
    if (path.parent / "config.yaml").exists():
        return path.parent, path.name
    raise ConfigError(f"compare: {path} is neither a run directory (no config.yaml there) nor RUN/NAME of one")


def _refuse_disjoint(opened: dict[Path, Readings]) -> None:
    for folder, readings in opened.items():
        if readings.pool is None:
            raise ArtifactMismatch(f"{folder}: no pool there yet; run `influray select` first")
    ids = {folder: frozenset(r.pool.id_N.tolist()) for folder, r in opened.items() if r.pool is not None}
    first, *others = ids
    for other in others:
        if ids[first].isdisjoint(ids[other]):
            raise ArtifactMismatch(
                f"{first} and {other}: their pools have no record id in common; only selections from one pool compare"
            )


def _entries(readings: Readings, only: str | None, prefix: str) -> list[_Entry]:
    run, pool = readings.run, readings.pool
    assert pool is not None
    names = committed(run, [selector.name for selector in readings.config.selectors])
    if only is not None and only not in names:
        known = ", ".join(names) or "none yet; run `influray select` first"
        raise ConfigError(f"compare: {run.path.name} has no selection {only!r} (known: {known})")
    if not names:
        raise ArtifactMismatch(f"{run.path}: nothing is selected yet; run `influray select` first")
    wanted = names if only is None else [only]
    results = {one.name: one for one in read_evaluations(run, dict.fromkeys(names, STYLES[0]))}
    base = results.get(BASE)
    entries = [
        _Entry(
            prefix + name,
            selection_facts(run, name, place, pool, readings.attribution)[0],
            results.get(name),
            base,
        )
        for place, name in enumerate(wanted)
    ]
    if only is None:
        entries += [_Entry(prefix + name, None, results[name], base) for name in (FULL, BASE) if name in results]
    return entries


def _table(entries: Sequence[_Entry], *, several: bool) -> Comparison:
    chosen = [entry for entry in entries if entry.selection is not None]
    total: dict[str, float] = {}  # source -> sum of its shares
    for entry in chosen:
        assert entry.selection is not None
        for source, rows in entry.selection.sources.items():
            total[source] = total.get(source, 0.0) + rows / entry.selection.examples
    sources = [source for source, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:SOURCES]]
    evaluated = any(entry.tuned for entry in entries)
    columns = ["selection", "method", "examples", "tokens", "macro AID", "worst AID", "worst task", "spread"]
    columns += ["THI entropy", "duplicates", *(f"overlap {entry.label}" for entry in chosen)]
    columns += [f"from {visible(source) or '(no source)'}" for source in sources]
    columns += ["macro loss", "loss gain", "worst loss", "exact match", "exact gain"] if evaluated else []
    rows = []
    for entry in entries:
        cells = [entry.label, *_selection_cells(entry.selection, chosen, sources)]
        rows.append(tuple(cells + (_result_cells(entry) if evaluated else [])))
    return Comparison(tuple(columns), tuple(rows), tuple(_notes(entries, several)))


def _selection_cells(one: SelectionFacts | None, chosen: Sequence[_Entry], sources: Sequence[str]) -> list[str]:
    if one is None:
        return [ABSENT] * (9 + len(chosen) + len(sources))
    balance = one.balance
    cells = [one.method, count(one.examples), count(one.tokens)]
    cells += (
        [ABSENT] * 5
        if balance is None
        else [
            signed(balance.macro),
            signed(balance.worst),
            balance.worst_task,
            number(balance.spread),
            number(balance.entropy),
        ]
    )
    cells.append(count(one.duplicates))
    cells += [number(jaccard(one.ids, entry.selection.ids)) for entry in chosen if entry.selection is not None]
    return cells + [percent(one.sources.get(source, 0) / one.examples) for source in sources]


def _result_cells(entry: _Entry) -> list[str]:
    result, base = entry.tuned, entry.base
    if result is None:
        return [ABSENT] * 5
    exact, before = result.macro_exact, None
    loss_gain = exact_gain = ABSENT
    if base is not None and result is not base:
        loss_gain = signed(base.macro_loss.mean - result.macro_loss.mean, 3)
        before = base.macro_exact
    if exact and before:
        exact_gain = signed(100 * (exact.mean - before.mean), 1)
    worst = result.loss[result.worst_loss_task].mean
    return [
        number(result.macro_loss.mean, 3),
        loss_gain,
        f"{number(worst, 3)} ({result.worst_loss_task})",
        percent(exact.mean) if exact else ABSENT,
        exact_gain,
    ]


def _notes(entries: Sequence[_Entry], several: bool) -> list[str]:
    notes = []
    if any(entry.selection and entry.selection.balance for entry in entries):
        notes.append("AID: standard deviations of influence above the pool's mean; spread: its deviation over tasks.")
    notes.append("overlap: records in both over records in either.")
    if several:
        notes.append("AID of different runs comes from different matrices; it compares within a run.")
    tuned = [entry.tuned for entry in entries if entry.tuned and entry.tuned.name != BASE]
    if tuned:
        seeds = sorted({seed for one in tuned for seed in one.seeds})
        widest = max(one.macro_loss.high - one.macro_loss.low for one in tuned)
        range_ = f"; a selection's macro loss differs by up to {number(widest, 3)} between seeds" if widest else ""
        notes.append(f"results: mean over seeds {listed([str(seed) for seed in seeds])}{range_}.")
    return notes
