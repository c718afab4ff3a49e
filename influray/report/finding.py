"""The finding at the head of the page: what the numbers say, in sentences computed from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from influray.evaluation.paired_effect import student_95
from influray.formatting import large, listed, number, percent, signed
from influray.report.data import SelectionFacts, Tuned, labelled
from influray.report.evaluations import BASE, FULL

UNEVEN = 1.2  # the largest selection by the smallest, in tokens, from which on it is told


def finding(selections: Sequence[SelectionFacts], tuned: Sequence[Tuned]) -> tuple[str, ...]:
    """Return what fine-tuning showed; where there was none, one sentence on how influence spreads over the tasks."""
    balance = _on_balance(selections)
    return verdict(selections, tuned) or ((balance,) if balance else ())


def verdict(selections: Sequence[SelectionFacts], tuned: Sequence[Tuned]) -> tuple[str, ...]:
    """Return which selection did best on the tests, what each is worth beside random rows, and exact match."""
    results = [one for one in tuned if one.name not in (BASE, FULL)]
    if not results:
        return ()
    methods = {one.name: one.method for one in selections}
    sentences = (
        _best(results, tuned),
        _beside_random(results, methods),
        *_on_budgets(selections, results),
        _on_length(selections, results),
        _on_exact(tuned),
        _on_roles(tuned),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _best(results: Sequence[Tuned], tuned: Sequence[Tuned]) -> str:
    best = min(results, key=lambda one: one.macro_loss.mean)
    beside = [f"{number(one.macro_loss.mean, 3)} {_place(one.name)}" for one in tuned if one.name in (BASE, FULL)]
    of = f", the lowest of {len(results)} selections" if len(results) > 1 else ""
    return (
        f"Tuned on {best.name} the model has a macro answer loss of {number(best.macro_loss.mean, 3)} on the tests{of}"
        + (f" ({listed(beside)})" if beside else "")
        + f"; its worst task is {best.worst_loss_task}, {number(best.loss[best.worst_loss_task].mean, 3)}."
    )


def _beside_random(results: Sequence[Tuned], methods: Mapping[str, str]) -> str:
    """Return which selections are better than random rows, which are worse, and which cannot be told from them."""
    drawn = next((one for one in results if methods.get(one.name) == "random"), None)
    others = [one for one in results if methods.get(one.name) != "random"]
    if drawn is None and (there := [name for name, method in methods.items() if method == "random"]):
        return (
            f"The selection {there[0]} was not tuned, so whether choosing pays is not known: add it to tune.selections."
        )
    if drawn is None:
        return (
            "No random selection was tuned, so whether choosing pays is not known: add "
            "{name: random, method: random, budget: ...} to selectors."
        )
    found: dict[str, list[str]] = {"lower": [], "higher": [], "": []}
    single = False
    for one in others:
        value, interval = difference(one, drawn)
        single = single or interval is None
        if interval is None or interval[0] <= 0 <= interval[1]:
            found[""].append(f"{one.name} ({signed(value, 3)})")
        else:
            ends = f"{signed(interval[0], 3)} to {signed(interval[1], 3)}"
            found["lower" if value < 0 else "higher"].append(f"{one.name} ({signed(value, 3)}, {ends})")
    parts = [f"{kind} with {listed(names)}" for kind, names in found.items() if kind and names]
    if found[""]:
        parts.append(f"not told apart with {listed(found[''])}")
    if not parts:
        return ""
    text = f"Against {drawn.name} rows ({number(drawn.macro_loss.mean, 3)}) it is {'; '.join(parts)}"
    if single:
        return f"{text}: one seed has no interval, and it may be chance; tune.seeds: [0, 1, 2] gives one."
    return f"{text}; 95 % over the {len(drawn.seeds)} tuning seeds."


def _on_budgets(selections: Sequence[SelectionFacts], results: Sequence[Tuned]) -> Iterator[str]:
    """Yield, of selections that differ in budget alone, which is the smallest whose loss is no worse than the lowest.

    No worse is what the interval of their difference over the seeds does not exclude.
    """
    known = {one.name: one for one in results}
    kinds: dict[str, list[SelectionFacts]] = {}
    for one in selections:
        if one.name in known and one.method != "random":
            kinds.setdefault(one.but_budget, []).append(one)
    for kind in kinds.values():
        if len({one.examples for one in kind}) < 2:
            continue
        ascending = sorted(kind, key=lambda one: one.examples)
        best = min(ascending, key=lambda one: known[one.name].macro_loss.mean)
        differences = [difference(known[one.name], known[best.name]) for one in ascending]
        text = (
            f"{listed([one.name for one in ascending])} differ in budget alone "
            f"({listed([large(one.examples) for one in ascending])} rows): the lowest loss is that of {best.name}"
        )
        if any(interval is None for _, interval in differences):
            yield f"{text}, by one seed, which may be chance; tune.seeds: [0, 1, 2] says which smaller one is enough."
            continue
        place = next(i for i, (_, ends) in enumerate(differences) if ends is None or ends[0] <= 0)
        (value, ends), enough = differences[place], ascending[place]
        assert ends is not None
        apart = f"{signed(value, 3)}, {signed(ends[0], 3)} to {signed(ends[1], 3)}; 95 % over the tuning seeds"
        yield (
            f"{text}, and all smaller ones are higher: a budget of {enough.examples} is the smallest that is enough."
            if enough is best
            else f"{text}, and {enough.name} is the smallest that is not told apart from it ({apart}): a budget of "
            f"{enough.examples} is enough."
        )


def _on_length(selections: Sequence[SelectionFacts], results: Sequence[Tuned]) -> str:
    """Return how unlike in tokens the tuned selections are, where they are: more of them teach more."""
    tokens = {one.name: one.tokens for one in selections if one.name in {result.name for result in results}}
    if not tokens or max(tokens.values()) <= UNEVEN * min(tokens.values()):
        return ""
    parts = [f"{large(count)} with {name}" for name, count in sorted(tokens.items(), key=lambda item: -item[1])]
    return (
        f"The selections are not of one length, which itself makes a difference: {listed(parts)} tokens; budgets in "
        "tokens compare methods evenly."
    )


def difference(one: Tuned, other: Tuned) -> tuple[float, tuple[float, float] | None]:
    """Return the difference of macro losses, paired by tuning seed, and its 95 % interval: Student's t over the seeds.

    The interval is None with fewer than two seeds in common. It says what another tuning seed would change, nothing of
    other pools, targets or tests.
    """
    mine, theirs = (dict(zip(t.seeds, t.macro_losses, strict=True)) for t in (one, other))
    values = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if len(values) < 2:
        return one.macro_loss.mean - other.macro_loss.mean, None
    mean = statistics.fmean(values)
    half = student_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def _on_exact(tuned: Sequence[Tuned]) -> str:
    scored = [(one, one.macro_exact) for one in tuned if one.macro_exact]
    shares = [f"{percent(value.mean)} {_place(one.name)}" for one, value in scored]
    return f"{scored[0][0].exact_name.capitalize()}: {listed(shares)}." if shares else ""


def _on_roles(tuned: Sequence[Tuned]) -> str:
    """Return the losses on tasks that are not sought, which no macro loss holds."""
    parts = []
    for task, role in tuned[0].roles.items():
        losses = [f"{number(one.loss[task].mean, 3)} {_place(one.name)}" for one in tuned if task in one.loss]
        parts.append(f"{labelled(task, role)} {listed(losses)}")
    return f"Answer loss on what is not sought, and in no macro loss: {'; '.join(parts)}." if parts else ""


def _on_balance(selections: Sequence[SelectionFacts]) -> str:
    known = [(s.name, s.balance) for s in selections if s.balance is not None]
    if not known:
        return ""
    if len(known[0][1].aid) < 2:
        parts = [f"{name} {signed(balance.macro)}" for name, balance in known]
        return f"Mean standardised influence on the one task: {listed(parts)} (a mean pool row has 0)."
    name, first = known[0]
    sentence = (
        f"The task that {name} serves worst ({first.worst_task}) gets {signed(first.worst)} standard deviations of "
        f"influence over the pool's mean"
    )
    if len(known) == 1:
        return f"{sentence}; over the {len(first.aid)} tasks influence spreads by {number(first.spread)}."
    others = listed([f"{signed(other.worst)} with {name} ({other.worst_task})" for name, other in known[1:]])
    spreads = listed([f"{number(balance.spread)} with {name}" for name, balance in known])
    return f"{sentence}, against {others}; over the {len(first.aid)} tasks influence spreads by {spreads}."


def _place(name: str) -> str:
    return {FULL: "with the full pool", BASE: "before tuning"}.get(name, f"with {name}")
