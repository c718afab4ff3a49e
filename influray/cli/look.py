"""The verbs that look: plan, inspect, compare, targets, methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from influray.cli.options import Given, RunPath, number, of_config
from influray.cli.printing import err, out, print_comparison, print_tables, table

if TYPE_CHECKING:
    from influray.planning.plan import Plan

WIDE = 100  # columns of a terminal that has room for all that a plan tells
GRADIENTS = "Forward and backward passes of every row, at each warmup checkpoint"
COSTS = {  # what scores cost -> what their featurizers read
    "Text alone, no model": ("records",),
    "A forward pass of every row": ("base",),
    "A forward pass of every row under each warmup adapter, and the warmup": ("adapters",),
    GRADIENTS: ("checkpoints",),
}
BEGIN_WITH = (
    "Begin with bids and uot over inner_product of gradients, with near_duplicates: 0.99, and beside them quota and "
    "random. In ten generated worlds and on one small real model uot had a loss that was not told apart from that of "
    "bids, and in the worlds 6 points more of exact match; quota had the most right answers at a higher loss; copies "
    "cost every method that held some. docs/choosing.md says more; what holds for your data `influray validate` tells."
)
SHOWN_OF_A_TURN = 400  # characters; all of it stands in the text below


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("plan")(of_config(plan, cluster=False))
    app.command("inspect")(of_config(inspect, cluster=False))
    app.command()(compare)
    app.command()(targets)
    app.command()(methods)


def plan(
    given: Given,
    device: Annotated[
        str | None, typer.Option("--device", help="Plan for h100, h200, a100, l40s or cpu; default: this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Plan for so many feature workers.")] = None,
    numbers: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show the steps, what is done, and what the rest would take; starts neither Ray nor a model."""
    from influray import pipeline

    made = pipeline.plan(given.config, given.overrides, run_dir=given.run_dir, device=device, workers=workers)
    if numbers:
        out.print(json.dumps(made.as_plain(), indent=1), markup=False)
        return
    _print_plan(made)


def inspect(
    given: Given,
    row: Annotated[int | None, typer.Option("--row", help="Row of the catalogue.")] = None,
    identity: Annotated[str | None, typer.Option("--id", help="Id of the record.")] = None,
    split: Annotated[str, typer.Option("--split", help="pool, target or test.")] = "pool",
) -> None:
    """Show a record as the model sees it, trained tokens marked."""
    from influray import pipeline

    which: dict[str, Any] = {"split": split, "row": row, "identity": identity}
    view = pipeline.inspect(given.config, given.overrides, run_dir=given.run_dir, **which)
    out.print(f"row {view.row}  id {escape(repr(view.id))}  {escape(view.place)}  source {escape(view.source)}")
    out.print(f"{view.tokens} tokens, {view.loss_tokens} trained{', truncated' if view.truncated else ''}")
    if view.cuts:
        out.print(f"cut by the chat template: {escape(', '.join(view.cuts))}")
    if view.tools:
        out.print(f"tools: {escape(', '.join(view.tools))}")
    turns = [(i, turn.role, "yes" if turn.trained else "", _short(turn.says)) for i, turn in enumerate(view.turns, 1)]
    out.print()
    out.print(table("turn", "role", "trained", "says", rows=turns))
    out.print()
    for text, trained in view.pieces:
        out.print(_marked(text) if trained else escape(text), end="")
    out.print(f"\n\n{_marked('trained')} tokens are marked")


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN[/NAME] ...", help="Run directories (folders or URIs), or selections of them."),
    ],
    figure: Annotated[Path | None, typer.Option("--figure", help="Write it as .html, or its figures as .svg.")] = None,
    numbers: Annotated[str | None, typer.Option("--json", help="Write its numbers as JSON; - prints them.")] = None,
) -> None:
    """Put selections side by side: balance, overlap, shares and results."""
    from influray.report.compare import compare as compare_runs
    from influray.report.compare_sheet import compare_sheet
    from influray.report.sheet import check_figure_path, check_output_path, write_sheet
    from influray.store.artifact import write_json

    drawn = None if figure is None else check_figure_path(figure, "--figure")
    plain = None if numbers is None or numbers == "-" else check_output_path(numbers, "--json")
    result = compare_runs(runs)
    if numbers == "-":
        typer.echo(json.dumps(result.as_plain()))
    else:
        print_comparison(result)
    if drawn is not None:
        write_sheet(drawn, compare_sheet(result))
        (err if numbers == "-" else out).print(f"figure: {escape(str(drawn))}")
    if plain is not None:
        write_json(plain, result.as_plain())
        out.print(f"numbers: {escape(str(plain))}")


def targets(
    run: RunPath,
    keep: Annotated[str, typer.Option("--keep", help="How many: a number, or a fraction such as 0.25.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="A folder for the records of those kept, a file a task.")
    ] = None,
    numbers: Annotated[str | None, typer.Option("--json", help="Write what was found as JSON; - prints it.")] = None,
) -> None:
    """Say which few targets stand for the others: fewer gradients, a smaller evaluation set."""
    from influray import pipeline
    from influray.report.sheet import check_output_path
    from influray.store.artifact import write_json

    plain = None if numbers is None or numbers == "-" else check_output_path(numbers, "--json")
    cover, files = pipeline.targets(run, number(keep, "--keep"), to)
    told = out
    if numbers == "-":
        typer.echo(json.dumps(cover.as_plain()))
        told = err
    else:
        print_tables(cover.tables(), [])
    if cover.left_out:
        ids = ", ".join(cover.ids[t] for t in cover.left_out[:5])
        told.print(f"{len(cover.left_out)} targets whose columns carry nothing were left out: {escape(ids)}")
    for path in [*files, *([plain] if plain else [])]:
        told.print(f"written: {escape(str(path))}")
    if plain is not None:
        write_json(plain, cover.as_plain())


def methods() -> None:
    """List what a config can name, by what it costs."""
    from influray.plugins import offered, target_of
    from influray.registry import FEATURIZERS, METHODS, PROJECTORS, SCORERS, SEAMS, SELECTORS, scorers_of
    from influray.selectors.normalisers import NORMALISERS
    from influray.selectors.reductions import REDUCTIONS

    for cost, reads in COSTS.items():
        rows = []
        for featurizer, entry in FEATURIZERS.items():
            if entry.traits is not None and entry.traits.reads in reads:
                rows.append(("featurizer", featurizer, entry.summary))
                rows += [("scorer", name, SCORERS[name].summary) for name in scorers_of(featurizer)]
        if cost == GRADIENTS:
            rows += [("projector", name, PROJECTORS[name].summary) for name in sorted(PROJECTORS)]
        _group(cost, rows)
    rows = [
        ("published", name, f"{summary}: {' '.join([selector, *(f'{k}={v}' for k, v in options.items())])}")
        for name, (selector, options, summary) in METHODS.items()
    ]
    rows += [("selector", name, SELECTORS[name].summary) for name in sorted(SELECTORS)]
    rows += [("option", "normaliser", ", ".join(NORMALISERS)), ("option", "reduction", ", ".join(REDUCTIONS))]
    _group("Over any scores, in seconds to minutes: what a selector's `method` can be", rows)
    if plug_ins := [(seam[:-1], name, str(target_of(seam, name))) for seam in SEAMS for name in offered(seam)]:
        _group("Plug-ins that are installed", plug_ins)
    out.print(BEGIN_WITH)


def _group(title: str, rows: list[tuple[str, str, str]]) -> None:
    out.print(f"[bold]{escape(title)}[/bold]")
    out.print(table("", "name", "what it is", rows=rows))
    out.print()


def _print_plan(plan: Plan) -> None:
    from influray.formatting import large, seconds
    from influray.report.sheet import Table as SheetTable

    rows = []
    for step in plan.steps:
        took = "" if step.actual_seconds is None else seconds(step.actual_seconds)
        if step.ratio is not None:
            took += f" {step.ratio:.2g}x" if step.ratio < 10 else f" {step.ratio:.0f}x"
        rows.append(
            (
                step.name,
                step.state,
                large(step.rows),
                large(step.tokens),
                large(step.operations or None),
                "" if not step.worker_hours else f"{step.worker_hours:.2g}",
                seconds(step.wall_seconds or None),
                took,
                large(step.bytes, "B"),
            )
        )
    unit = "CPU h" if plan.device == "CPU" else "GPU h"
    columns = ("step", "state", "rows", "tokens", "FLOP", unit, "time", "took", "disk")
    kept = [c for c, name in enumerate(columns) if out.width >= WIDE or name != "FLOP"]  # --json has it
    cells = tuple(tuple(row[c] for c in kept) for row in rows)
    numbers = SheetTable("What it takes", tuple(columns[c] for c in kept), cells)
    print_tables([numbers], [])
    for step in plan.steps:
        out.print(f"{step.name}: {escape(step.what)}")
    beside = plan.validation
    out.print(f"`influray validate`, on its own, {seconds(beside.wall_seconds or None)}: {escape(beside.what)}")
    left = [step.wall_seconds for step in plan.steps if not step.state.startswith("done")]
    if plan.limit != "unknown":
        out.print(f"time of what is to do: {seconds(sum(took for took in left if took is not None))}")
    out.print()
    memory = "unknown" if plan.memory_per_worker is None else large(plan.memory_per_worker, "B")
    out.print(f"{plan.workers} x {plan.device}, {large(plan.worker_operations)} FLOP/s each; memory a worker: {memory}")
    several = plan.device != "CPU"  # how many to ask for is the question of a cluster
    if several and plan.worth_workers is not None:
        out.print(f"workers that pay off: {plan.worth_workers} of {plan.shards} shards (start-up against work)")
    if several and plan.saturating_workers is not None:
        out.print(f"the driver keeps {plan.saturating_workers} workers busy; featurize is limited by: {plan.limit}")
    for note in plan.notes:
        out.print(escape(note))


def _short(text: str) -> str:
    text = " ".join(text.split())  # a cell is one line
    return text if len(text) <= SHOWN_OF_A_TURN else text[: SHOWN_OF_A_TURN - 1].rstrip() + "\u2026"


def _marked(text: str) -> str:
    # A pipe shows no reverse video.
    return f"[reverse]{escape(text)}[/reverse]" if out.is_terminal else escape(f"\u27e6{text}\u27e7")
