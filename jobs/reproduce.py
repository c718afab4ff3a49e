"""The miniature comparison at full length: several worlds, budgets and tuning seeds, and a table with its errors.

    python jobs/reproduce.py        hours on two cores; stopped, the same command goes on

One run a world: warmup and features are made once and serve all budgets. Every fine-tuning has the same number of
steps, at every budget and for the full pool, so that data differ and nothing else.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev, stdev, variance
from typing import Any

from influray.miniature import prepare
from influray.pipeline import run
from influray.store.run_directory import RunDirectory

METHODS = {
    "bids": "bids",
    "normalised-instance-max": "normalised_instance_max",
    "instance-max": "instance_max",
    "less": "less",
    "random": "random",
    "rr": "rr",
    "facility-location": "facility_location",
    "quota": "quota",
}
USUAL = ("bids", "normalised-instance-max", "instance-max", "less", "random")
FULL, BASE = "full", "base"
APART = ".apart"  # ends the arm of a method under constraints.near_duplicates


@dataclass(frozen=True)
class Outcome:
    """One evaluated model: task -> {"loss", "exact_match"}. `arm` is as `arm_name` has it, or "full" or "base"."""

    world: int
    arm: str
    seed: int
    tasks: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Estimate:
    """A mean over worlds of means over seeds, with what repeating the seeds, or the worlds, would move it.

    `seed_error` is the standard error that tuning seeds leave (NaN with one seed), `world_error` the standard error
    over worlds, which includes it (NaN with one world).
    """

    mean: float
    seed_error: float
    world_error: float


@dataclass(frozen=True)
class Row:
    """One arm. Exact match in percent points; `gain` over the base of the same world; `spread` over the tasks."""

    arm: str
    runs: int
    macro_loss: Estimate
    gain: Estimate
    worst_exact: Estimate
    spread_exact: Estimate
    loss_over_bids: Estimate  # paired by world and seed; above 0 where BIDS is better; NaN for full and base
    loss_over_free: Estimate  # likewise, over the same method without near_duplicates; NaN for all but APART


def reproduce(
    folder: str | Path,
    worlds: Sequence[int],
    seeds: Sequence[int],
    budgets: Sequence[float],
    near_duplicates: float | None = None,
    methods: Sequence[str] = USUAL,
    apart_only: bool = False,
) -> list[Row]:
    """Carry out, or go on with, one run a world under `folder` and return the table's rows.

    With `near_duplicates` every method is there twice: as it is, and with that constraint; with `apart_only` only so,
    but for random, which stays a plain draw.
    """
    outcomes: list[Outcome] = []
    for world in worlds:
        place = Path(folder) / f"world-{world}"
        selectors = [
            {"name": arm_name(name, budget), "method": METHODS[name], "budget": budget}
            for budget in budgets
            for name in methods
        ]
        if near_duplicates is not None:
            limits = {"near_duplicates": near_duplicates}
            apart = [{**one, "name": f"{one['name']}{APART}", "constraints": limits} for one in selectors]
            if apart_only:
                apart = [one for one in apart if one["method"] != "random"]
                selectors = [one for one in selectors if one["method"] == "random"]
            selectors += apart
        arms = [selector["name"] for selector in selectors] + [FULL]
        overrides: dict[str, Any] = {"selectors": selectors, "tune.selections": arms, "tune.seeds": list(seeds)}
        RunDirectory(place).claim()  # before a world is written into it
        done = run(prepare(place / "world", seed=world), overrides, run_dir=place, until="evaluate")
        outcomes.append(Outcome(world, BASE, 0, done.evaluation(BASE, 0)["tasks"]))
        outcomes += [Outcome(world, arm, seed, done.evaluation(arm, seed)["tasks"]) for arm in arms for seed in seeds]
    return aggregate(outcomes)


def arm_name(method: str, budget: float) -> str:
    """Return the name of a method's selection at a budget, such as `bids-5pct`."""
    return f"{method}-{100 * budget:g}pct"


def aggregate(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return one row an arm, in order of first appearance; the base comes from the same world as the model.

    Raises:
        ValueError: a world has no outcome of the base, or an arm was not tuned with the same seeds in every world.
    """
    base = {o.world: _macro(o, "exact_match") for o in outcomes if o.arm == BASE}
    if missing := sorted({o.world for o in outcomes} - set(base)):
        raise ValueError(f"world {missing[0]}: no evaluation of the base model")
    by_arm: dict[str, dict[tuple[int, int], Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.world, outcome.seed] = outcome
    return [_row(arm, cells, base, by_arm) for arm, cells in by_arm.items()]


def _row(
    arm: str,
    cells: Mapping[tuple[int, int], Outcome],
    base: Mapping[int, float],
    by_arm: Mapping[str, Mapping[tuple[int, int], Outcome]],
) -> Row:
    exact = {cell: [100 * task["exact_match"] for task in o.tasks.values()] for cell, o in cells.items()}
    loss = {cell: _macro(o, "loss") for cell, o in cells.items()}
    bids = f"bids-{arm.rpartition('-')[2]}" if arm not in (FULL, BASE) else ""
    free = arm.removesuffix(APART) if arm.endswith(APART) else ""
    return Row(
        arm,
        len(cells),
        macro_loss=estimate(loss),
        gain=estimate({cell: fmean(values) - 100 * base[cell[0]] for cell, values in exact.items()}),
        worst_exact=estimate({cell: min(values) for cell, values in exact.items()}),
        spread_exact=estimate({cell: pstdev(values) for cell, values in exact.items()}),
        loss_over_bids=_paired(loss, by_arm.get(bids, {})),
        loss_over_free=_paired(loss, by_arm.get(free, {})),
    )


def _paired(loss: Mapping[tuple[int, int], float], rival: Mapping[tuple[int, int], Outcome]) -> Estimate:
    over = {cell: loss[cell] - _macro(rival[cell], "loss") for cell in loss if cell in rival}
    return estimate(over) if over else Estimate(math.nan, math.nan, math.nan)


def estimate(value_by_cell: Mapping[tuple[int, int], float]) -> Estimate:
    """Return the estimate from one value per (world, seed).

    Raises:
        ValueError: worlds have different numbers of seeds.
    """
    worlds: dict[int, list[float]] = {}
    for (world, _), value in sorted(value_by_cell.items()):
        worlds.setdefault(world, []).append(value)
    counts = {len(values) for values in worlds.values()}
    if len(counts) != 1:
        raise ValueError(f"worlds have different numbers of seeds: {sorted(counts)}")
    S, W = counts.pop(), len(worlds)
    means = [fmean(values) for values in worlds.values()]
    seed_error = math.sqrt(math.fsum(variance(v) / S for v in worlds.values())) / W if S > 1 else math.nan
    return Estimate(fmean(means), seed_error, stdev(means) / math.sqrt(W) if W > 1 else math.nan)


def table(rows: Iterable[Row]) -> str:
    """Return the rows as text: mean +- standard error over seeds (over worlds)."""
    head = (
        "selection",
        "runs",
        "macro loss",
        "gain in exact match",
        "worst task",
        "spread",
        "loss over BIDS",
        "over free",
    )
    lines = [head] + [
        (
            row.arm,
            str(row.runs),
            _text(row.macro_loss, 3),
            _text(row.gain, 1),
            _text(row.worst_exact, 1),
            _text(row.spread_exact, 1),
            _text(row.loss_over_bids, 3),
            _text(row.loss_over_free, 3),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    note = "mean +- standard error over tuning seeds (over worlds); exact match in percent points"
    return "\n".join(["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines] + [note])


def _macro(outcome: Outcome, key: str) -> float:
    return fmean(task[key] for task in outcome.tasks.values())


def _text(value: Estimate, digits: int) -> str:
    if math.isnan(value.mean):
        return "-"
    text = f"{value.mean:.{digits}f}"
    if not math.isnan(value.seed_error):
        text += f" +- {value.seed_error:.{digits}f}"
    return text if math.isnan(value.world_error) else f"{text} ({value.world_error:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="runs/reproduce", help="where the runs lie, one folder a world")
    parser.add_argument("--worlds", type=int, nargs="+", default=[0, 1, 2], help="seeds of worlds")
    parser.add_argument("--seeds", type=int, default=10, help="tuning seeds a selection")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.10, 0.15], help="fractions of the pool")
    parser.add_argument("--near-duplicates", type=float, help="also every method with this constraint, such as 0.99")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=USUAL, metavar="NAME")
    parser.add_argument("--apart-only", action="store_true", help="with that constraint alone; random without it")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    seeds = range(options.seeds)
    limits = options.near_duplicates, options.methods, options.apart_only
    print(table(reproduce(options.folder, options.worlds, seeds, options.budgets, *limits)))


if __name__ == "__main__":
    main()
