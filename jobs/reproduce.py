"""The miniature comparison at full length: several worlds, budgets and tuning seeds, and a table with its intervals.

    python jobs/reproduce.py        hours on two cores; stopped, the same command goes on

One run a world: warmup and features are made once and serve all budgets. Every fine-tuning has the same number of
steps, at every budget and for the full pool, so that data differ and nothing else. Each `--variant NAME KEY=VALUE ...`
is a run of its own from the same warmup under other settings, and its arms are called METHOD-BUDGET@NAME.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from influray.config import parse_override
from influray.evaluation.stability import mean_interval
from influray.miniature import prepare
from influray.pipeline import run
from influray.store.run_directory import RunDirectory

USUAL = ("bids", "normalised-instance-max", "instance-max", "less", "random")
FULL, BASE = "full", "base"
APART = ".apart"  # ends the arm of a method under constraints.near_duplicates
OF = "@"  # before the name of a variant, at the end of its arms


@dataclass(frozen=True)
class Outcome:
    """One evaluated model: task -> {"loss", "exact_match"}. `arm` is as `arm_name` has it, or "full" or "base"."""

    world: int
    arm: str
    seed: int
    tasks: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Estimate:
    """A mean over worlds of means over seeds, and half of its 95 % interval.

    By Student's t over the worlds; with one world over its seeds, which says nothing of other worlds; NaN with one of
    each.
    """

    mean: float
    half: float


NOTHING = Estimate(math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """One arm. Exact match in percent points; what is over another arm is paired by world and seed."""

    arm: str
    runs: int
    macro_loss: Estimate
    loss_over_bids: Estimate  # above 0 where BIDS is better; nothing for full and base
    loss_over_random: Estimate
    loss_over_free: Estimate  # over the same method without near_duplicates; nothing for all but APART
    worst_loss: Estimate  # of the task that is served worst
    exact: Estimate
    exact_over_bids: Estimate
    exact_over_random: Estimate
    worst_exact: Estimate


def reproduce(
    folder: str | Path,
    worlds: Sequence[int],
    seeds: Sequence[int],
    budgets: Sequence[float],
    near_duplicates: float | None = None,
    methods: Sequence[str] = USUAL,
    apart_only: bool = False,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Do, or go on with, one run a world under `folder` and return the table's rows.

    With `near_duplicates` every method is there twice: as it is, and with that constraint; with `apart_only` only so,
    but for random, which stays a plain draw. `variants` are names with settings; random and the full pool, which no
    setting of features or scores changes, are tuned once.
    """
    outcomes: list[Outcome] = []
    for world in worlds:
        place = Path(folder) / f"world-{world}"
        selectors = [
            {"name": arm_name(name, budget), "method": name.replace("-", "_"), "budget": budget}
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
        RunDirectory(place).claim()  # before a world is written into it
        config, last = prepare(place / "world", seed=world), place
        for name, settings in {"": {}, **(variants or {})}.items():
            here = _beside(place, name, last) if name else place
            ours = [one for one in selectors if not name or one["method"] != "random"]
            arms = [one["name"] for one in ours] + ([] if name else [FULL])
            overrides = {"selectors": ours, "tune.selections": arms, "tune.seeds": list(seeds), **settings}
            done, last = run(config, overrides, run_dir=here, until="evaluate"), here
            if not name:
                outcomes.append(Outcome(world, BASE, 0, done.evaluation(BASE, 0)["tasks"]))
            ending = OF + name if name else ""
            for arm in arms:
                found = (Outcome(world, arm + ending, seed, done.evaluation(arm, seed)["tasks"]) for seed in seeds)
                outcomes += found
    return aggregate(outcomes)


def _beside(place: Path, name: str, last: Path) -> Path:
    """Return the run directory of a variant, begun with what the run `last` has that the variant may share."""
    folder = place.with_name(f"{place.name}-{name}")
    if not folder.exists():
        RunDirectory(folder).claim()
        for part in ("data", "warmup", "features"):
            shutil.copytree(last / part, folder / part)
    return folder


def arm_name(method: str, budget: float) -> str:
    """Return the name of a method's selection at a budget, such as `bids-5pct`."""
    return f"{method}-{100 * budget:g}pct"


def aggregate(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return one row an arm, in order of first appearance.

    Raises:
        ValueError: an arm was not tuned with the same seeds in every world.
    """
    by_arm: dict[str, dict[tuple[int, int], Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.world, outcome.seed] = outcome
    return [_row(arm, by_arm) for arm in by_arm]


def _row(arm: str, by_arm: Mapping[str, Mapping[tuple[int, int], Outcome]]) -> Row:
    cells = by_arm[arm]
    loss = {cell: _macro(o, "loss") for cell, o in cells.items()}
    exact = {cell: 100 * _macro(o, "exact_match") for cell, o in cells.items()}
    bids, drawn = (_rival(arm, method, by_arm) for method in ("bids", "random"))
    free = by_arm.get(arm.replace(APART, ""), {}) if APART in arm else {}
    return Row(
        arm,
        len(cells),
        macro_loss=estimate(loss),
        loss_over_bids=_paired(loss, {cell: _macro(o, "loss") for cell, o in bids.items()}),
        loss_over_random=_paired(loss, {cell: _macro(o, "loss") for cell, o in drawn.items()}),
        loss_over_free=_paired(loss, {cell: _macro(o, "loss") for cell, o in free.items()}),
        worst_loss=estimate({cell: max(t["loss"] for t in o.tasks.values()) for cell, o in cells.items()}),
        exact=estimate(exact),
        exact_over_bids=_paired(exact, {cell: 100 * _macro(o, "exact_match") for cell, o in bids.items()}),
        exact_over_random=_paired(exact, {cell: 100 * _macro(o, "exact_match") for cell, o in drawn.items()}),
        worst_exact=estimate({c: 100 * min(t["exact_match"] for t in o.tasks.values()) for c, o in cells.items()}),
    )


def _rival(
    arm: str, method: str, by_arm: Mapping[str, Mapping[tuple[int, int], Outcome]]
) -> Mapping[tuple[int, int], Outcome]:
    """Return what another method gave at an arm's budget, under the same limit or, where it has none, without.

    It is the other method's arm under the settings that all variants share.
    """
    own, _, variant = arm.partition(OF)
    if arm in (FULL, BASE) or (own.startswith(f"{method}-") and not variant):
        return {}
    ending = own.rpartition("-")[2]
    names = (f"{method}-{ending}", f"{method}-{ending.removesuffix(APART)}", f"{method}-{ending}{APART}")
    return next((by_arm[name] for name in names if name in by_arm), {})


def _paired(mine: Mapping[tuple[int, int], float], theirs: Mapping[tuple[int, int], float]) -> Estimate:
    over = {cell: value - theirs[cell] for cell, value in mine.items() if cell in theirs}
    return estimate(over) if over else NOTHING


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
    means = [fmean(values) for values in worlds.values()]
    spread = means if len(means) > 1 else next(iter(worlds.values()))
    interval = mean_interval(spread)
    return Estimate(fmean(means), (interval[1] - interval[0]) / 2 if interval else math.nan)


COLUMNS = {  # of the table: heading -> (field, digits)
    "macro loss": ("macro_loss", 3),
    "less BIDS'": ("loss_over_bids", 3),
    "less random's": ("loss_over_random", 3),
    "less without the limit": ("loss_over_free", 3),
    "worst task": ("worst_loss", 3),
    "exact match": ("exact", 1),
    "less BIDS' ": ("exact_over_bids", 1),
    "less random's ": ("exact_over_random", 1),
    "worst task ": ("worst_exact", 1),
}


def table(rows: Sequence[Row], worlds: int) -> str:
    """Return the rows as text, each figure with its 95 % interval."""
    shown = {
        heading: (name, digits)
        for heading, (name, digits) in COLUMNS.items()
        if any(not math.isnan(getattr(row, name).mean) for row in rows)
    }
    lines = [("selection", "runs", *shown)]
    for row in rows:
        figures = (_text(getattr(row, name), digits, "less" in head) for head, (name, digits) in shown.items())
        lines.append((row.arm, str(row.runs), *figures))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    over = f"the {worlds} worlds" if worlds > 1 else "the tuning seeds of one world"
    note = f"+- 95 %, Student's t over {over}; loss of the answers, exact match in percent points"
    return "\n".join(["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines] + [note])


def _macro(outcome: Outcome, key: str) -> float:
    return fmean(task[key] for task in outcome.tasks.values())


def _text(value: Estimate, digits: int, signed: bool) -> str:
    if math.isnan(value.mean):
        return "-"
    text = f"{value.mean:{'+' if signed else ''}.{digits}f}"
    return text if math.isnan(value.half) else f"{text} +- {value.half:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="runs/reproduce", help="where the runs lie, one folder a world")
    parser.add_argument("--worlds", type=int, nargs="+", default=[0, 1, 2], help="seeds of worlds")
    parser.add_argument("--seeds", type=int, default=10, help="tuning seeds a selection")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.10, 0.15], help="fractions of the pool")
    parser.add_argument("--near-duplicates", type=float, help="also every method with this constraint, such as 0.99")
    parser.add_argument("--methods", nargs="+", default=USUAL, metavar="NAME", help="such as facility-location")
    parser.add_argument("--apart-only", action="store_true", help="with that constraint alone; random without it")
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    seeds = range(options.seeds)
    limits = options.near_duplicates, options.methods, options.apart_only
    variants = {name: dict(map(parse_override, settings)) for name, *settings in options.variant}
    rows = reproduce(options.folder, options.worlds, seeds, options.budgets, *limits, variants)
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows, len(options.worlds)))


if __name__ == "__main__":
    main()
