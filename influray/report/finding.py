"""The finding at the head of the page: what the numbers say, in sentences computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from influray.formatting import listed, number, percent, signed
from influray.report.data import SelectionFacts, Tuned
from influray.report.evaluations import BASE, FULL


def finding(selections: Sequence[SelectionFacts], tuned: Sequence[Tuned]) -> tuple[str, ...]:
    """Return one sentence on how the selections serve the tasks, and one on fine-tuning where there was some."""
    sentences = [_on_balance(selections), _on_tuning(tuned)]
    return tuple(sentence for sentence in sentences if sentence)


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


def _on_tuning(tuned: Sequence[Tuned]) -> str:
    results = [one for one in tuned if one.name != BASE]
    if not results:
        return ""
    seeds = sorted({seed for one in results for seed in one.seeds})
    loss = listed([f"{number(one.macro_loss.mean, 3)} {_place(one.name)}" for one in tuned])
    scored = [(one, one.macro_exact) for one in tuned if one.macro_exact]
    exact = listed([f"{percent(value.mean)} {_place(one.name)}" for one, value in scored]) if scored else ""
    return (
        f"Macro answer loss on the tests, lower is better ({len(seeds)} seed{'' if len(seeds) == 1 else 's'}): {loss}"
        + (f"; exact match: {exact}." if exact else ".")
    )


def _place(name: str) -> str:
    return {FULL: "with the full pool", BASE: "before tuning"}.get(name, f"with {name}")
