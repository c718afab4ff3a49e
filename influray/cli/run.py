"""The verbs that run a config: all of it, up to a step, or the miniature world's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from influray.cli.export import print_selections
from influray.cli.options import Address, Given, number, of_config
from influray.cli.printing import err, out, print_comparison, print_tables
from influray.protocols import ConfigError
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.runs import Run

UP_TO = {
    "warmup": "Train the LoRA warmup checkpoints, or import yours.",
    "featurize": "Compute the gradient features of pool and targets.",
    "score": "Compute the attribution matrix.",
    "tune": "Fine-tune the base on every selection.",
    "evaluate": "Evaluate the fine-tuned models on the held-out records.",
}


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("run")(of_config(run))
    for step, summary in UP_TO.items():
        app.command(step)(of_config(_verb_of(step, summary)))
    app.command("select")(of_config(select))
    app.command("report")(of_config(report))
    app.command()(demo)


def run(given: Given) -> None:
    """Run every step, up to the report."""
    _print_outcome(given.run("report"))


def _verb_of(step: str, summary: str) -> Callable[[Given], None]:
    def verb(given: Given) -> None:
        _up_to(given, step)

    verb.__doc__ = summary
    return verb


def _up_to(given: Given, step: str) -> None:
    found = given.run(step)
    if step == "evaluate":
        _print_outcome(found)
    else:
        out.print(f"{step}: done in {escape(found.directory.address)}")


def select(
    given: Given,
    curve: Annotated[bool, typer.Option("--curve", help="Show how each selection grows with its budget.")] = False,
    curve_selection: Annotated[str | None, typer.Option("--curve-selection", help="Only this one's curve.")] = None,
    curve_budget: Annotated[
        str | None,
        typer.Option("--curve-budget", help="How far: examples, or a fraction such as 0.3; default: the selection."),
    ] = None,
) -> None:
    """Run every selector of the config; with --curve, show what smaller or larger budgets give."""
    from influray import pipeline
    from influray.report import curve_sheet

    if not curve:
        for option, value in (("--curve-selection", curve_selection), ("--curve-budget", curve_budget)):
            if value is not None:
                raise ConfigError(f"{option}: {value!r} is for the curve; add --curve")
        _up_to(given, "select")
        return
    budget = None if curve_budget is None else number(curve_budget, "--curve-budget")
    place = {"run_dir": given.run_dir, "address": given.address}
    which = {"selection": curve_selection, "budget": budget}
    curves, paths = pipeline.curves(given.config, given.overrides, console=err, **place, **which)
    numbers = [curve_sheet.numbers_of(one, few=len(curves) > 1) for one in curves]
    print_tables([*curve_sheet.knees(curves), *numbers], [])
    for note in (*curve_sheet.NOTES, *curve_sheet.rechecks(curves)):
        out.print(escape(note))
    for path in paths:
        out.print(f"curves: {escape(str(path))}")


def report(given: Given) -> None:
    """Write RUN/report/index.html, with what it needs up to the selection."""
    out.print(f"report: {escape(str(given.run('report-only').directory.report))}")


def demo(
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Where the run lies; default: runs/demo.")] = None,
    size: Annotated[
        str, typer.Option("--size", help="full; small: every step, in minutes; real: a real model on real data.")
    ] = "full",
    seed: Annotated[int, typer.Option("--seed", help="Of the generated world.")] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", help="Of --size real: pool and targets; default: INFLURAY_DATA.")
    ] = None,
    address: Address = None,
) -> None:
    """Run the miniature world, or the real example, end to end and compare the selections by fine-tuning."""
    from influray import miniature, real_example

    if run_dir is not None and ":" in run_dir.parts[0]:
        raise ConfigError("demo: --run-dir is a folder: its world and base model are made there")
    if data is not None and size != "real":
        raise ConfigError(f"demo: --data {str(data)!r} is for --size real; the world of --size {size} is generated")
    run_dir = run_dir or Path("runs/demo" if size == "full" else f"runs/demo-{size}")
    RunDirectory(run_dir).claim()  # before a world is written into it
    if size == "real":
        _print_outcome(*(Given(path, {}, None, address).run("report") for path in real_example.prepare(run_dir, data)))
        return
    config = miniature.prepare(run_dir / "world", seed=seed, size=size)
    finished = Given(Path(config), {}, str(run_dir), address).run("report")
    if size == "small":
        # Measured: docs/evidence.md, "How far the small demo's scores can be trusted".
        out.print(
            "This world is too small to compare methods by: with another seed its scores are others. It shows the "
            "steps; `influray demo` shows the effect, and `influray validate RUN --experiment stability` how far to "
            "trust a run."
        )
    _print_outcome(finished)


def _print_outcome(*runs: Run) -> None:
    from influray.report.compare import compare as compare_runs

    print_comparison(compare_runs([run.directory.path for run in runs]))
    for run in runs:
        print_selections(run)
        out.print(f"report: {escape(str(run.directory.report))}")
