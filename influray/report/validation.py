"""What `influray validate` found: its results as they lie in RUN/validate, and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from influray import formatting
from influray.protocols import ArtifactMismatch
from influray.report.sheet import Table
from influray.store.artifact import read_sealed
from influray.store.run_directory import RunDirectory

TITLES = {
    "lds": "LDS: do sums of scores foretell the losses after training on random subsets?",
    "leave_one_out": "Leave one out: do scores foretell what a row's absence does?",
}
NOTES = {
    "lds": "LDS: Spearman's correlation over the subsets, mean over the records of a task, then over tasks; in "
    "brackets the 95 % interval over the draw of subsets. 0 = no better than chance, 1 = the order of the measured effects.",
    "recall": "Rows known to be right for a task, by the mean of its columns; equal scores count by expectation. AUC: "
    "the chance that such a row stands above another (.5 = chance). Average precision by chance: the share of such rows.",
    "stability": "Spearman's correlation of the influence with the run's own, over rows; shared: Jaccard overlap of "
    "the chosen rows with the run's own.",
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
    def there(cls, directory: RunDirectory) -> Validation:
        """Return all results of a run, in the order in which this page has them. Raises DamagedArtifact."""
        made = directory.read()["steps"].get("validate", {}).get("experiments", ())
        there = [name for name in SHOWN if name in made or (directory.validation / f"{name}.json").is_file()]
        return cls.read(directory, there)

    @property
    def tables(self) -> list[Table]:
        """The results as tables."""
        return [table for name, found in self.results.items() for table in SHOWN[name](name, found)]

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
    lines = [
        (
            one["name"],
            formatting.number(one["value"]),
            *(formatting.number(one["tasks"][task]) for task in found["tasks"]),
        )
        for one in found["variants"]
    ]
    if found["halves_agree"] is not None:
        known = found["halves_agree"]
        values = [value for value in known.values() if value is not None]
        mean = formatting.number(sum(values) / len(values) if values else None)
        lines.append(("one half against the other", mean, *(formatting.number(known[task]) for task in found["tasks"])))
    tables = [Table("Stability of the means over a task's targets", ("variant", "mean", *found["tasks"]), tuple(lines))]
    if found["selectors"]:
        variants = list(found["selectors"][0]["overlap"])
        rows = [
            (
                one["name"],
                formatting.percent(one["chosen_in"][-1] / one["rows"]),
                formatting.percent(one["chosen_in"][0] / one["rows"]),
                *(formatting.number(one["overlap"][variant]) for variant in variants),
            )
            for one in found["selectors"]
        ]
        count = found["selectors"][0]["variants"]
        columns = (
            "selection",
            f"in all {count}",
            "in the run's alone",
            *(f"shared, {variant}" for variant in variants),
        )
        tables.append(Table("Stability of what is chosen", columns, tuple(rows)))
    return [*tables, *_source_tables(found)]


def _source_tables(found: Mapping[str, Any]) -> list[Table]:
    known = {(one["source"], one["task"]): one for one in found["sources"] if one["interval"] is not None}
    sources = list(dict.fromkeys(source for source, _ in known))
    rows = [(source, *(interval(known[source, task], signed=True) for task in found["tasks"])) for source in sources]
    title = "Influence of sources, standard deviations above the pool's mean, with intervals over seeds"
    return [Table(title, ("source", *found["tasks"]), tuple(rows))] if rows else []


def interval(one: Mapping[str, Any], signed: bool = False, digits: int = 2) -> str:
    """Return "0.44 [0.30, 0.54]"."""
    value = formatting.signed(one["value"], digits) if signed else formatting.number(one["value"], digits)
    low, high = (formatting.number(end, digits) for end in one["interval"])
    return f"{value} [{low}, {high}]"


def _notes(name: str, found: Mapping[str, Any]) -> list[str]:
    what = f"{found['subsets']} subsets of {found['rows']} of {found['candidates']} rows" if name == "lds" else ""
    notes = [NOTES[name]] if name in NOTES else []
    if what:
        notes.append(f"{what}; {len(found['tuning_seeds'])} seeds; {len(found['retrainings'])} retrainings.")
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
    "leave_one_out": agreement_tables,
    "recall": recall_tables,
    "stability": stability_tables,
}
