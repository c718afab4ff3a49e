"""What the report says, as plain values: `collect` fills them from a run directory, `render` puts them on the page.

Texts of the pool stand here as they are; only rendering makes them safe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from influray import formatting
from influray.evaluation.budget_curve import BudgetCurve
from influray.evaluation.knee import Knee, find_knee
from influray.evaluation.known_answer import KnownAnswer
from influray.report.validation import Validation


@dataclass(frozen=True)
class Over:
    """A number over seeds: its mean and its ends."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Quantiles:
    """Of the lengths of some rows, in tokens."""

    p10: float
    p25: float
    median: float
    p75: float
    p90: float


@dataclass(frozen=True)
class TaskFacts:
    """A target task and its columns of the matrix."""

    name: str
    columns: int  # targets of the task
    used: int  # of them, those that take part in the standardised matrix
    role: str = "seek"

    @property
    def label(self) -> str:
        return labelled(self.name, self.role)


@dataclass(frozen=True)
class TaskBalance:
    """How a selection serves the sought tasks that have a target in use; see `influray.evaluation.balance`.

    `aid` is per task the mean of AID over its targets in use (0 = the mean row of the pool), `aid_std` its standard
    deviation over them (ddof 0); `thi_task` and `thi_instance` count the chosen rows by the task of their highest
    influence.
    """

    aid: Mapping[str, float]
    aid_std: Mapping[str, float]
    thi_task: Mapping[str, int]
    thi_instance: Mapping[str, int]

    @property
    def macro(self) -> float:
        return sum(self.aid.values()) / len(self.aid)

    @property
    def worst_task(self) -> str:
        return min(self.aid, key=lambda task: self.aid[task])

    @property
    def best_task(self) -> str:
        return max(self.aid, key=lambda task: self.aid[task])

    @property
    def worst(self) -> float:
        return self.aid[self.worst_task]

    @property
    def best(self) -> float:
        return self.aid[self.best_task]

    @property
    def spread(self) -> float:
        """Standard deviation of AID over the tasks (ddof 0)."""
        return math.sqrt(sum((value - self.macro) ** 2 for value in self.aid.values()) / len(self.aid))

    @property
    def entropy(self) -> float:
        """Entropy of THI by task over its largest possible value: 1 = all tasks alike, 0 = one task has all."""
        return normalised_entropy(list(self.thi_task.values()))


@dataclass(frozen=True)
class Limited:
    """How a selection stands to a task that it is to protect or to avoid.

    `mean` is the mean standardised influence of its rows on the task: 0 = the mean row of the pool, as AID.
    """

    role: str
    mean: float


@dataclass(frozen=True)
class SelectionFacts:
    """A committed selection: what was chosen, and how it serves the tasks."""

    name: str
    method: str
    options: Mapping[str, Any]
    seed: int
    style: str  # colour class of the figures
    ids: tuple[str, ...]  # in order of choice
    tokens: int
    sources: Mapping[str, int]  # source -> chosen rows
    winners: Mapping[str, int]  # task of the column that won the row -> rows; empty where the method has none
    lengths: Quantiles
    duplicates: int  # chosen rows whose turns equal those of a row chosen before
    balance: TaskBalance | None  # None where there is no attribution matrix
    limited: Mapping[str, Limited] = field(default_factory=dict)  # task -> of those to protect and to avoid
    auto: str = ""  # how the budget chose itself, where it did
    but_budget: str = ""  # all that it was made by but its budget, as text

    @property
    def examples(self) -> int:
        return len(self.ids)

    @property
    def own_budget(self) -> str:
        """How the budget chose itself, as a sentence; "" where it is the config's."""
        return f"The budget of {self.name} chose itself: {self.examples:,} rows, by {self.auto}." if self.auto else ""


@dataclass(frozen=True)
class Overlap:
    """How alike selections are, [selection][selection], by record id: as sets, and as orders of choice.

    `depth` is the mean depth to which rank-biased overlap looks, 1 / (1 - p).
    """

    jaccard: Sequence[Sequence[float]]
    ranked: Sequence[Sequence[float]]
    depth: float


@dataclass(frozen=True)
class Recheck:
    """A selection made again for another budget: how many of the first `compared` rows it begins with are the same.

    Where it could not be made, `reason` says why and nothing is compared.
    """

    budget: int
    same: int
    compared: int
    reason: str = ""


@dataclass(frozen=True)
class CurveFacts:
    """A selection's curve over budgets. Arrays as in `influray.evaluation.budget_curve`."""

    name: str
    method: str
    style: str
    examples: int  # of the committed selection
    rows: int  # of the matrix
    curve: BudgetCurve
    tokens_M: np.ndarray
    recheck: Recheck | None = None  # None where nobody asked for it

    @property
    def coverage_knee(self) -> Knee:
        return find_knee(self.curve.budget_M, self.curve.coverage_M)

    @property
    def worst_knee(self) -> Knee:
        """That of AID of the worst task, from `first` on."""
        found = find_knee(self.curve.budget_M[self.first :], self.curve.worst[self.first :])
        return found if found.index is None else Knee(found.index + self.first)

    @property
    def worst_peak(self) -> int:
        """The point from `first` on where AID of the worst task is highest, the first of equal ones."""
        return self.first + int(self.curve.worst[self.first :].argmax())

    @property
    def first(self) -> int:
        """The first point with as many rows as tasks, or the last: before it no choice could serve every task."""
        place = int(np.searchsorted(self.curve.budget_M, len(self.curve.tasks)))
        return min(place, len(self.curve.budget_M) - 1)


@dataclass(frozen=True)
class PoolFacts:
    """What the selections were made from."""

    rows: int
    tokens: int
    sources: Mapping[str, int]
    lengths: Quantiles
    never_scored: int = 0  # rows of the whole pool that did not pass a cascade
    passed_by: tuple[str, ...] = ()  # featurizer, scorer and method of its cheap pass

    @property
    def whole(self) -> int:
        """Rows of the whole pool."""
        return self.rows + self.never_scored


@dataclass(frozen=True)
class Tuned:
    """The evaluation of one selection (or of the base, or the full pool) over its seeds.

    What sums up the tasks is of those that are sought; `roles` are those of the others.
    """

    name: str
    style: str
    seeds: tuple[int, ...]
    loss: Mapping[str, Over]  # task -> answer loss
    exact: Mapping[str, Over]  # task -> share of exact matches; tasks without answers are absent
    exact_metric: str  # "exact_match" of generated answers, or "teacher_forced"

    macro_loss: Over
    macro_exact: Over | None
    macro_losses: tuple[float, ...]  # of each seed
    spread_loss: float  # standard deviation over the tasks of the means over seeds
    spread_exact: float | None
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def exact_name(self) -> str:
        """What the exact matches are called: of generated answers, or of those that greedy decoding would write."""
        return "exact match" if self.exact_metric == "exact_match" else "teacher-forced match"

    @property
    def worst_loss_task(self) -> str:
        return max((task for task in self.loss if task not in self.roles), key=lambda task: self.loss[task].mean)

    @property
    def worst_exact_task(self) -> str | None:
        sought = [task for task in self.exact if task not in self.roles]
        return min(sought, key=lambda task: self.exact[task].mean) if sought else None


@dataclass(frozen=True)
class Example:
    """A pool row with its text, as one task sees it."""

    row: int
    id: str
    source: str
    tokens: int
    score: float  # mean standardised influence on the task
    influence: float  # the same before standardising: below 0, training on the row should harm the task
    copies: int  # rows with the same turns among those looked at, itself included
    chosen: Mapping[str, int]  # selection -> rank, from 1, where it was chosen
    turns: tuple[tuple[str, str], ...]  # (role, text)


@dataclass(frozen=True)
class TaskExamples:
    """The rows of highest score on a task, and those of lowest that harm it; the first of each list is the extreme."""

    task: str
    helpful: tuple[Example, ...]
    harmful: tuple[Example, ...]


@dataclass(frozen=True)
class Quarantine:
    """Rows that were not used."""

    total: int
    groups: tuple[tuple[str, str, str, int], ...]  # (split, stage, reason, rows), most frequent first
    more_groups: int  # reasons that `groups` leaves out
    first: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class LeftOut:
    """A target column that takes no part."""

    task: str
    id: str
    reason: str


@dataclass(frozen=True)
class Step:
    """A step as run.json records it."""

    name: str
    status: str
    seconds: float | None
    facts: Mapping[str, Any]  # rows, tokens, started and whatever else was recorded


@dataclass(frozen=True)
class ReportData:
    """Everything that the page says."""

    name: str
    made: str  # when the last step began, as recorded; not when the page was made, so that a page repeats
    model: str
    features: tuple[str, ...]  # what they are, and what is to be said of them
    finding: tuple[str, ...]
    tasks: tuple[TaskFacts, ...]
    targets: int
    pool: PoolFacts | None
    selections: tuple[SelectionFacts, ...]
    curves: tuple[CurveFacts, ...]
    overlap: Overlap
    tuned: tuple[Tuned, ...]
    known: tuple[KnownAnswer, ...]
    examples: tuple[TaskExamples, ...]
    quarantine: Quarantine | None
    left_out: tuple[LeftOut, ...]
    steps: tuple[Step, ...]
    versions: Mapping[str, str]
    host: Mapping[str, Any]
    missing: Mapping[str, str]  # part of the page -> the command that makes what it needs
    audit: Mapping[str, Any] | None = None  # report.audit's, where it was made
    propagation: Mapping[str, Any] | None = None  # how propagated scores agree with exact ones, where there are such
    validation: Validation | None = None  # what `influray validate` found, None where it was not asked for

    @property
    def title(self) -> str:
        """What its pages are called: run folders are often called alike, so their tasks too, three at most by name."""
        names = [task.label for task in self.tasks]
        more = [f"{len(names) - 2} more"] if len(names) > 3 else []
        return f"{self.name}: {formatting.listed(names[:2] + more if more else names)}" if names else self.name


def labelled(task: str, role: str | None) -> str:
    """Return a task's name, with its role behind it where it is not sought."""
    return task if role in (None, "seek") else f"{task} ({role})"


def normalised_entropy(counts: Sequence[int]) -> float:
    """Return the entropy of the shares over log(number of entries), in [0, 1]; 1 for a single entry."""
    total = sum(counts)
    if len(counts) < 2 or total == 0:
        return 1.0
    return -sum(c / total * math.log(c / total) for c in counts if c) / math.log(len(counts))
