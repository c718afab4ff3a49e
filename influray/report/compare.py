"""Selections side by side, of one run or of several: what they hold, whom they serve, how alike they are, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from influray.config_messages import near
from influray.formatting import listed, number
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.data import Overlap, PoolFacts, SelectionFacts, Tuned
from influray.report.evaluations import BASE, FULL, read_evaluations
from influray.report.finding import verdict
from influray.report.readings import Readings, open_run
from influray.report.selections import STYLES, committed, overlap, selection_facts
from influray.store.mirror import local, present
from influray.store.uri import is_uri, parse_uri, redacted


@dataclass(frozen=True)
class Entry:
    """A selection, or what was tuned on none: the full pool, the base."""

    label: str  # the selection's name, after its run's where there are several
    selection: SelectionFacts | None
    tuned: Tuned | None
    base: Tuned | None

    @property
    def loss_gain(self) -> float | None:
        """How much lower the macro loss is than the base's; None where one of them is not there."""
        if self.tuned is None or self.base is None or self.tuned is self.base:
            return None
        return self.base.macro_loss.mean - self.tuned.macro_loss.mean

    @property
    def exact_gain(self) -> float | None:
        """How much higher the macro exact match is than the base's."""
        if self.tuned is None or self.base is None or self.tuned is self.base:
            return None
        exact, before = self.tuned.macro_exact, self.base.macro_exact
        return exact.mean - before.mean if exact and before else None


@dataclass(frozen=True)
class Comparison:
    """What there is to compare; `pool` is None where the runs have different ones. `notes` say how to read it."""

    title: str
    entries: tuple[Entry, ...]
    overlap: Overlap  # of `chosen`, in that order
    pool: PoolFacts | None
    notes: tuple[str, ...]

    @property
    def chosen(self) -> list[tuple[str, SelectionFacts]]:
        """The selections with their labels."""
        return [(entry.label, entry.selection) for entry in self.entries if entry.selection is not None]

    @property
    def tasks(self) -> list[str]:
        """The tasks of all runs that have a target in use, in order of first appearance."""
        return list(dict.fromkeys(task for _, one in self.chosen if one.balance for task in one.balance.aid))

    @property
    def limited(self) -> list[tuple[str, str]]:
        """The tasks that some selection is to protect or to avoid, with their roles, in order of first appearance."""
        found = ((task, limit.role) for _, one in self.chosen for task, limit in one.limited.items())
        return list(dict.fromkeys(found))

    def as_plain(self) -> dict[str, Any]:
        """Return all numbers as JSON can hold them."""
        return {
            "entries": [_plain_entry(entry) for entry in self.entries],
            "overlap": {
                "order": [label for label, _ in self.chosen],
                "jaccard": self.overlap.jaccard,
                "rank_biased": self.overlap.ranked,
                "persistence": 1 - 1 / self.overlap.depth,
            },
            "notes": list(self.notes),
        }


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Return the comparison of all selections of the runs given, or of those named as RUN/NAME.

    A whole run also brings its results of the full pool and of the base. Overlap is counted by record id. Nothing
    but what is committed is read; no feature is computed.

    Raises:
        ConfigError: neither a run directory nor a selection of one.
        ArtifactMismatch: nothing is selected yet, or two runs share no record, so that there is nothing to compare.
    """
    if not runs:
        raise ConfigError("compare: no run given; name run directories, or selections as RUN/NAME")
    asked = [run_and_name(run, "compare") for run in runs]
    opened: dict[Path, Readings] = {}
    for folder, _ in asked:
        if folder not in opened:
            opened[folder] = open_run(folder)
    ids = _refuse_disjoint(opened)
    found: list[Entry] = []
    for folder, name in dict.fromkeys(asked):
        prefix = f"{folder.name}/" if len(opened) > 1 else ""
        found += _entries(opened[folder], name, prefix)
    entries = tuple({entry.label: entry for entry in found}.values())
    entries = _styled(entries) if len(opened) > 1 else entries
    first = next(iter(opened.values())).pool
    chosen = [entry.selection for entry in entries if entry.selection is not None]
    alike = overlap(chosen)
    return Comparison(
        " and ".join(folder.name for folder in opened),
        entries,
        alike,
        first.facts() if first is not None and len(set(ids.values())) == 1 else None,
        tuple(_notes(entries, alike, several=len(opened) > 1)),
    )


def run_and_name(run: str | Path, key: str) -> tuple[Path, str | None]:
    """Return (run directory, selection or None for all) of RUN or RUN/NAME. Raises ConfigError naming `key`."""
    path = local(run, key).resolve()
    if present(path / "config.yaml").exists():
        return path, None
    above = path.parent
    if is_uri(run):
        uri = parse_uri(str(run), key)
        above = local(str(uri.parent), key) if uri.parent.prefix else path
    if present(above / "config.yaml").exists():
        return above, path.name
    folder = path.parent if path.suffix else path  # RUN/selection/NAME, and a file in it
    if folder.parent.name == "selection" and present(folder.parents[1] / "config.yaml").exists():
        return folder.parents[1], folder.name
    shown = redacted(str(run)) if is_uri(run) else path
    below = "" if is_uri(run) else next((f"; did you mean {p.parent}?" for p in sorted(path.glob("*/config.yaml"))), "")
    raise ConfigError(f"{key}: {shown} is neither a run directory (no config.yaml there) nor RUN/NAME of one{below}")


def _refuse_disjoint(opened: Mapping[Path, Readings]) -> dict[Path, frozenset[str]]:
    """Return the record ids of each run's pool."""
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
    return ids


def _entries(readings: Readings, only: str | None, prefix: str) -> list[Entry]:
    run, pool = readings.run, readings.pool
    assert pool is not None
    names = committed(run, [selector.name for selector in readings.config.selectors])
    if only is not None and only not in names:
        known = ", ".join(names) or "none yet; run `influray select` first"
        hint = near(only, dict.fromkeys(names))
        raise ConfigError(f"compare: {run.path.name} has no selection {only!r}{hint} (known: {known})")
    if not names:
        raise ArtifactMismatch(f"{run.path}: nothing is selected yet; run `influray select` first")
    style = {name: STYLES[place % len(STYLES)] for place, name in enumerate(names)}
    results = {one.name: one for one in read_evaluations(run, style, readings.config.data.roles)}
    base = results.get(BASE)
    entries = [
        Entry(
            prefix + name,
            selection_facts(run, name, names.index(name), pool, readings.attribution)[0],
            results.get(name),
            base,
        )
        for name in (names if only is None else [only])
    ]
    if only is None:
        entries += [Entry(prefix + name, None, results[name], base) for name in (FULL, BASE) if name in results]
    return entries


def _styled(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Give every selection of several runs a colour of its own, as far as there are colours."""
    place, found = 0, []
    for entry in entries:
        if entry.selection is not None:
            style = STYLES[place % len(STYLES)]
            tuned = None if entry.tuned is None else replace(entry.tuned, style=style)
            entry = replace(entry, selection=replace(entry.selection, style=style), tuned=tuned)
            place += 1
        found.append(entry)
    return tuple(found)


def _notes(entries: Sequence[Entry], alike: Overlap, *, several: bool) -> list[str]:
    notes = []
    if not several:
        notes += verdict([e.selection for e in entries if e.selection], [e.tuned for e in entries if e.tuned])
    if any(entry.selection and entry.selection.balance for entry in entries):
        notes.append(
            "AID: standard deviations of influence above the pool's mean, a mean over a task's targets (\u00b1 its "
            "deviation over them); spread: deviation of AID over the tasks. THI: task of a row's highest influence."
        )
    if any(entry.selection and entry.selection.limited for entry in entries):
        notes.append(
            "Tasks to protect and to avoid are in none of these: no row is chosen for them. A selection is never below "
            "the pool's mean on a task to protect, nor above it on one to avoid."
        )
    notes.append(
        "Jaccard overlap: records in both over records in either. Rank-biased overlap: agreement of the orders of "
        f"choice, the first rows counting most (p = {1 - 1 / alike.depth:.6g}, looking to a mean depth of "
        f"{alike.depth:,.0f} rows: a tenth of the smallest selection)."
    )
    if several:
        notes.append("AID of different runs comes from different matrices; it compares within a run.")
    tuned = [entry.tuned for entry in entries if entry.tuned and entry.tuned.name != BASE]
    if tuned:
        seeds = sorted({seed for one in tuned for seed in one.seeds})
        widest = max(one.macro_loss.high - one.macro_loss.low for one in tuned)
        range_ = f"; a selection's macro loss differs by up to {number(widest, 3)} between seeds" if widest else ""
        notes.append(f"results: mean over seeds {listed([str(seed) for seed in seeds])}{range_}.")
    return notes


def _plain_entry(entry: Entry) -> dict[str, Any]:
    return {
        "label": entry.label,
        "selection": None if entry.selection is None else _plain_selection(entry.selection),
        "tuned": None if entry.tuned is None else _plain_tuned(entry.tuned),
        "loss_gain": entry.loss_gain,
        "exact_gain": entry.exact_gain,
    }


def _plain_selection(one: SelectionFacts) -> dict[str, Any]:
    balance = one.balance
    found: dict[str, Any] = {name: getattr(one, name) for name in ("name", "method", "seed", "examples", "tokens")}
    found |= {"options": dict(one.options), "duplicates": one.duplicates, "sources": dict(one.sources), "balance": None}
    found["roles"] = {task: asdict(limit) for task, limit in one.limited.items()}
    if balance is not None:
        found["balance"] = {
            **{name: getattr(balance, name) for name in ("macro", "worst", "worst_task", "spread", "entropy")},
            "aid": {task: {"mean": mean, "std": balance.aid_std[task]} for task, mean in balance.aid.items()},
            "thi_task": dict(balance.thi_task),
            "thi_instance": dict(balance.thi_instance),
        }
    return found


def _plain_tuned(one: Tuned) -> dict[str, Any]:
    plain = {**asdict(one), "seeds": list(one.seeds)}
    names = ("seeds", "macro_loss", "loss", "exact_metric", "macro_exact", "exact", "roles")
    return {name: plain[name] for name in names}
