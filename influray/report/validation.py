"""What `influray validate` found: its results as they lie in RUN/validate, and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from influray import formatting
from influray.protocols import ArtifactMismatch
from influray.report.intervals import interval
from influray.report.pilot import pilot_figures, pilot_notes, pilot_tables
from influray.report.sheet import Figure, Table
from influray.store.artifact import read_sealed
from influray.store.mirror import present
from influray.store.run_directory import RunDirectory

TITLES = {
    "lds": "LDS: do sums of scores foretell the losses after training on random subsets?",
    "remove": "Remove: a task's best or worst rows left out, beside random rows",
    "keep": "Keep: a task's best or worst rows alone, beside random rows",
    "leave_one_out": "Leave one out: do scores foretell what a row's absence does?",
}
SUSPECTS = 20  # that a table shows
NOTES = {
    "lds": "LDS: Spearman's correlation over the subsets, mean over the records of a task, then over tasks; in "
    "brackets the 95 % interval over the draw of subsets. 0 = no better than chance, 1 = the order that was measured.",
    "remove": "Remove: answer loss on test records after training without these rows, less the loss without random "
    "rows of as many tokens; 95 % intervals over seeds and draws. Above 0 the rows were worth more than random ones.",
    "keep": "Keep: answer loss on test records after training on random rows of as many tokens, less the loss after "
    "training on these rows alone; 95 % intervals over seeds and draws. Above 0 the rows were worth more.",
    "recall": "Rows known to be right for a task, by the mean of its columns; equal scores count by expectation. AUC: "
    "the chance that such a row stands above another (.5 = chance). Average precision of chance: their share.",
    "stability": "Spearman's correlation of the influence with the run's own, over rows; shared: Jaccard overlap of "
    "the chosen rows with the run's own.",
    "blame": "Influence in standard deviations over the rows of the selection, on failing records less on passing "
    "ones, with 95 % intervals over the records. Below 0 a row harms what fails. Only the removal says whether it is "
    "behind it: gain is how much the loss falls without the suspects, less that without random rows of as many tokens.",
    "leave_one_out": "Spearman's correlation over what was left out, mean over the records of a task, then over tasks; "
    "in brackets the 95 % interval over the draw of groups.",
}


@dataclass(frozen=True)
class Validation:
    """The results of experiments, by name, as plain JSON."""

    results: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, directory: RunDirectory, names: Sequence[str]) -> Validation:
        """Return the results of these experiments. Raises ArtifactMismatch where one was not made."""
        found = {}
        for name in names:
            try:
                found[name] = read_sealed(directory.validation / f"{name}.json")
            except FileNotFoundError:
                raise ArtifactMismatch(f"{directory.validation}: no {name}.json; run `influray validate`") from None
        return cls(found)

    @classmethod
    def there(cls, directory: RunDirectory) -> Validation | None:
        """Return all results of a run in their order, None where it has none.

        Raises:
            DamagedArtifact: one is not what was committed, or is gone.
        """
        directory.require_made("validate")
        there = [name for name in SHOWN if present(directory.validation / f"{name}.json").exists()]
        return cls.read(directory, there) if there else None

    @property
    def tables(self) -> list[Table]:
        """The results as tables."""
        return [table for name, found in self.results.items() for table in SHOWN[name](name, found)]

    @property
    def figures(self) -> list[Figure]:
        """What of them is drawn."""
        return pilot_figures(self.results["pilot"]) if "pilot" in self.results else []

    @property
    def notes(self) -> list[str]:
        """How to read them."""
        return [note for name, found in self.results.items() for note in _notes(name, found)]


def agreement_tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """Return a line for every scorer, best first, and a table by task."""
    lines = sorted(found["scorers"], key=lambda one: -one["target"]["value"])
    tested = all("test" in one for one in lines)
    columns = ["scorer", "targets", "less the run's own", *(["test records"] if tested else []), "what it is"]
    rows = [
        (
            one["name"],
            interval(one["target"]),
            "" if one["name"] == found["scorers"][0]["name"] else interval(one["target"]["less_own"], signed=True),
            *([interval(one["test"])] if tested else []),
            one["what"],
        )
        for one in lines
    ]
    by_task = [(one["name"], *(interval(one["target"]["tasks"][task]) for task in found["tasks"])) for one in lines]
    return [
        Table(TITLES[name], tuple(columns), tuple(rows)),
        Table(f"{TITLES[name].partition(':')[0]} by task, targets", ("scorer", *found["tasks"]), tuple(by_task)),
    ]


def recall_tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """Return a table for every task with a known answer, the best average precision first."""
    tables = []
    for task, relevant in found["relevant"].items():
        lines = sorted(found["scorers"], key=lambda one: -one["tasks"][task]["average_precision"])
        rows = [
            (
                one["name"],
                *(formatting.number(one["tasks"][task][key], 3) for key in ("average_precision", "auc")),
                *(formatting.percent(value) for value in one["tasks"][task]["recall"]),
                formatting.number(one["tasks"][task]["reciprocal_rank"], 3),
            )
            for one in lines
        ]
        title = f"Known answers of {task}: {relevant} of {found['candidates']} rows"
        columns = "scorer", "average precision", "AUC", *(f"in the first {k}" for k in found["k"]), "1 / first rank"
        tables.append(Table(title, columns, tuple(rows)))
    return tables


def stability_tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """Return how scores agree with the run's, and how often its rows were chosen again."""
    agreements = [(one["name"], one["tasks"]) for one in found["variants"]]
    if found["halves_agree"] is not None:
        agreements.append(("one half against the other", found["halves_agree"]))
    lines = []
    for variant, by_task in agreements:
        known = [value for value in by_task.values() if value is not None]
        mean = sum(known) / len(known) if known else None
        lines.append((variant, *map(formatting.number, (mean, *(by_task[task] for task in found["tasks"])))))
    tables = [Table("Stability of the means over a task's targets", ("variant", "mean", *found["tasks"]), tuple(lines))]
    if found["selectors"]:
        variants = [one["name"] for one in found["variants"]]
        rows = [
            (
                one["name"],
                formatting.percent(one["chosen_in"][-1] / one["rows"]),
                formatting.percent(one["chosen_in"][0] / one["rows"]),
                *(formatting.number(one["overlap"][variant]) for variant in variants),
            )
            for one in found["selectors"]
        ]
        shared = (f"shared, {variant}" for variant in variants)
        columns = ("selection", f"in all {found['selectors'][0]['variants']}", "in the run's alone", *shared)
        tables.append(Table("Stability of what is chosen", columns, tuple(rows)))
    return [*tables, *_source_tables(found)]


def _source_tables(found: Mapping[str, Any]) -> list[Table]:
    known = {(one["source"], one["task"]): one for one in found["sources"] if one["interval"] is not None}
    sources = list(dict.fromkeys(source for source, _ in known))
    rows = [(source, *(interval(known[source, task], signed=True) for task in found["tasks"])) for source in sources]
    title = "Influence of sources, standard deviations above the pool's mean, with intervals over seeds"
    return [Table(title, ("source", *found["tasks"]), tuple(rows))] if rows else []


def removal_tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """Return a line for every task whose rows were taken: the effect on itself and on the mean of the others."""
    rows = [
        (
            one["task"],
            *(_effect(one[kind][on]) for kind in ("best", "worst") for on in ("own", "others")),
        )
        for one in found["lines"]
    ]
    columns = ("rows of", "best, on it", "best, on others", "worst, on it", "worst, on others")
    every = [
        (one["task"], *(_effect(one["best"]["tasks"][task]) for task in found["tested"])) for one in found["lines"]
    ]
    title = f"{TITLES[name]} ({formatting.count(found['rows'])} rows by {found['scorer']})"
    return [
        Table(title, columns, tuple(rows)),
        Table(f"{name.capitalize()}: best rows, by task", ("rows of", *found["tested"]), tuple(every)),
    ]


def blame_tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """Return what removal did, where it was tried, and the sources and rows that look to be behind it."""
    tables = []
    if found["removal"] is not None:
        lines = [
            (
                one["records"],
                *(formatting.number(one[key], 3) for key in ("with_all", "without", "without_random")),
                interval(one, signed=True, digits=3),
            )
            for one in found["removal"]["lines"]
        ]
        title = f"Removal: loss after tuning on {found['selection']} without {found['suspects']} suspects"
        columns = "records", "all rows", "without suspects", "without random rows", "gain"
        tables.append(Table(title, columns, tuple(lines)))
    sources = [(one["source"], formatting.count(one["rows"]), _contrast(one)) for one in found["sources"]]
    rows = [(one["id"], one["source"], _contrast(one)) for one in found["worst"]]
    return [
        *tables,
        Table("Sources by what they do to failing records", ("source", "rows", "influence"), tuple(sources)),
        Table("Suspects, the most harmful first", ("id", "source", "influence"), tuple(rows[:SUSPECTS])),
    ]


def _contrast(one: Mapping[str, Any]) -> str:
    return formatting.signed(one["value"]) if one["interval"] is None else interval(one, signed=True)


def _effect(one: Mapping[str, Any] | None) -> str:
    return formatting.ABSENT if one is None else interval(one, signed=True, digits=3)


def _notes(name: str, found: Mapping[str, Any]) -> list[str]:
    if name == "pilot":
        return pilot_notes(found)
    if name == "blame":
        return [NOTES[name]]
    what = {
        "lds": lambda: f"{found['subsets']} subsets of {found['rows']} of {found['candidates']} rows",
        "leave_one_out": lambda: f"{found['groups']} groups of {found['group_rows']} of {found['rows']} rows",
    }.get(name, lambda: f"{found['rows']} of {found['candidates']} rows, {found['draws']} random draws a task")
    seeds, trained = len(found["tuning_seeds"]), len(set(found["retrainings"]))
    notes = [NOTES[name]]
    if trained:
        notes.append(f"{what()}; {seeds} {'seed' if seeds == 1 else 'seeds'}; {trained} retrainings.")
    for split, seeds in found.get("seeds", {}).items():
        if seeds is None:
            notes.append("With one tuning seed how far the measurement agrees with itself is unknown.")
            break
        kind = "targets" if split == "target" else "test records"
        notes.append(
            f"Halves of the seeds agree by {formatting.number(seeds['halves'])} on {kind}: a scorer that knew the "
            f"expected effects would reach about {formatting.number(seeds['ceiling'])}."
        )
    return notes


# Experiment -> what its result becomes; the order of the page.
SHOWN = {
    "lds": agreement_tables,
    "remove": removal_tables,
    "keep": removal_tables,
    "leave_one_out": agreement_tables,
    "recall": recall_tables,
    "stability": stability_tables,
    "blame": blame_tables,
    "pilot": pilot_tables,
}
