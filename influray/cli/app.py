"""The command line: verbs onto the pipeline. What they print is made here and in the files beside it.

Exit status: 0 done; 2 wrong config or data, one message; 1 a bug, with its traceback, or object storage that does not
answer or a cluster that is gone, one message; 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from influray.cli import export, query
from influray.cli.options import Address, AllowPlugins, ConfigPath, RunDir, RunPath, Sets
from influray.cli.printing import err, guard_streams, out, print_tables, table
from influray.interrupts import interrupt_on_sigterm
from influray.protocols import USER_ERRORS, ConfigError, RunStopped, StorageError
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.pipeline import Run
    from influray.planning.plan import Plan
    from influray.report.compare import Comparison

app = typer.Typer(
    help="Choose training data for instruction tuning by influence, evenly over your tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
query.register(app)
export.register(app)
SHOWN_OF_A_TURN = 400  # characters; all of it stands in the text below


def _run(config: Path, run_dir: str | None, sets: list[str] | None, address: str | None, until: str) -> Run:
    from influray import pipeline
    from influray.config import parse_override

    return pipeline.run(
        config,
        dict(parse_override(text) for text in sets or []),
        run_dir=run_dir,
        until=until,
        address=address,
        console=err,
    )


@app.command("run")
def run_command(
    config: ConfigPath,
    run_dir: RunDir = None,
    sets: Sets = None,
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Carry out everything, up to the report."""
    run = _run(config, run_dir, sets, address, "report")
    _print_outcome(run)


def _step_command(step: str, summary: str) -> None:
    def command(
        config: ConfigPath,
        run_dir: RunDir = None,
        sets: Sets = None,
        address: Address = None,
        allow_plugins: AllowPlugins = False,
    ) -> None:
        run = _run(config, run_dir, sets, address, step)
        if step in ("report", "evaluate"):
            _print_outcome(run)
        else:
            out.print(f"{step}: done in {escape(run.directory.address)}")

    command.__doc__ = summary
    app.command(step)(command)


for _step, _summary in {
    "warmup": "Train the LoRA warmup checkpoints, or import yours.",
    "featurize": "Compute the gradient features of pool and targets.",
    "score": "Compute the attribution matrix.",
    "tune": "Fine-tune the base on every selection.",
    "evaluate": "Evaluate the fine-tuned models on the held-out records.",
}.items():
    _step_command(_step, _summary)


@app.command()
def select(
    config: ConfigPath,
    curve: Annotated[bool, typer.Option("--curve", help="Show how each selection grows with its budget.")] = False,
    curve_selection: Annotated[str | None, typer.Option("--curve-selection", help="Only this one's curve.")] = None,
    curve_budget: Annotated[
        str | None,
        typer.Option("--curve-budget", help="How far: examples, or a fraction such as 0.3; default: the selection."),
    ] = None,
    run_dir: RunDir = None,
    sets: Sets = None,
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Carry out every selector of the config; with --curve, tell what smaller or larger budgets give."""
    from influray import pipeline
    from influray.config import parse_override
    from influray.report import curve_sheet

    if not curve:
        for option, value in (("--curve-selection", curve_selection), ("--curve-budget", curve_budget)):
            if value is not None:
                raise ConfigError(f"{option}: {value!r} is for the curve; add --curve")
        run = _run(config, run_dir, sets, address, "select")
        out.print(f"select: done in {escape(run.directory.address)}")
        return
    curves, paths = pipeline.curves(
        config,
        dict(parse_override(text) for text in sets or []),
        run_dir=run_dir,
        selection=curve_selection,
        budget=None if curve_budget is None else _number(curve_budget, "--curve-budget"),
        address=address,
        console=err,
    )
    numbers = [curve_sheet.numbers_of(one, few=len(curves) > 1) for one in curves]
    print_tables([*curve_sheet.knees(curves), *numbers], [])
    for note in (*curve_sheet.NOTES, *curve_sheet.rechecks(curves)):
        out.print(escape(note))
    for path in paths:
        out.print(f"curves: {escape(str(path))}")


@app.command()
def report(
    config: ConfigPath,
    run_dir: RunDir = None,
    sets: Sets = None,
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Write RUN/report/index.html, with what it needs up to the selection."""
    run = _run(config, run_dir, sets, address, "report-only")
    out.print(f"report: {escape(str(run.directory.report))}")


@app.command()
def plan(
    config: ConfigPath,
    run_dir: RunDir = None,
    sets: Sets = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Plan for h100, h200, a100, l40s or cpu; default: this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Plan for so many feature workers.")] = None,
    numbers: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Show the steps, what is done, and what the rest would take; starts neither Ray nor a model."""
    from influray import pipeline
    from influray.config import parse_override

    overrides = dict(parse_override(text) for text in sets or [])
    made = pipeline.plan(config, overrides, run_dir=run_dir, device=device, workers=workers)
    if numbers:
        import json

        out.print(json.dumps(made.as_plain(), indent=1), markup=False)
        return
    _print_plan(made)


@app.command()
def inspect(
    config: ConfigPath,
    row: Annotated[int | None, typer.Option("--row", help="Row of the catalogue.")] = None,
    identity: Annotated[str | None, typer.Option("--id", help="Id of the record.")] = None,
    split: Annotated[str, typer.Option("--split", help="pool, target or test.")] = "pool",
    run_dir: RunDir = None,
    sets: Sets = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Show a record as the model sees it, trained tokens marked."""
    from influray import pipeline
    from influray.config import parse_override

    view = pipeline.inspect(
        config,
        dict(parse_override(text) for text in sets or []),
        run_dir=run_dir,
        split=split,
        row=row,
        identity=identity,
    )
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


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN[/NAME] ...", help="Run directories (folders or URIs), or selections of them."),
    ],
    figure: Annotated[Path | None, typer.Option("--figure", help="Write it as .html, or its figures as .svg.")] = None,
    numbers: Annotated[Path | None, typer.Option("--json", help="Write its numbers as JSON.")] = None,
) -> None:
    """Put selections side by side: balance, overlap, shares and results."""
    from influray.report.compare import compare as compare_runs
    from influray.report.compare_sheet import compare_sheet
    from influray.report.sheet import check_figure_path, check_output_path, write_sheet
    from influray.store.artifact import write_json

    drawn = None if figure is None else check_figure_path(figure, "--figure")
    plain = None if numbers is None else check_output_path(numbers, "--json")
    result = compare_runs(runs)
    _print_comparison(result)
    if drawn is not None:
        write_sheet(drawn, compare_sheet(result))
        out.print(f"figure: {escape(str(drawn))}")
    if plain is not None:
        write_json(plain, result.as_plain())
        out.print(f"numbers: {escape(str(plain))}")


@app.command()
def index(
    run: RunPath,
    kind: Annotated[str, typer.Option("--kind", help="auto, exact, flat, fp16, sq8, ivf, hnsw or pq.")] = "auto",
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Build the faiss index that queries are asked of."""
    from influray import pipeline

    made = pipeline.index(run, kind, address=address, console=err)
    recall, size = made["recall"], sum(part["bytes"] for part in made["parts"])
    found = "exact" if recall is None else f"recall@{recall['k']} {recall['value']:.3f}"
    out.print(escape(f"index: {made['kind']} ({made['reason']}), {found}, {size / 2**20:.1f} MiB"))


@app.command()
def methods() -> None:
    """List what a config can name."""
    from influray.plugins import offered, target_of
    from influray.registry import METHODS, SEAMS
    from influray.selectors.normalisers import NORMALISERS
    from influray.selectors.reductions import REDUCTIONS

    rows = [(seam, name, entry.summary) for seam, table in SEAMS.items() for name, entry in sorted(table.items())]
    rows += [(seam, name, f"plug-in, {target_of(seam, name)}") for seam in SEAMS for name in offered(seam)]
    rows += [
        ("published", name, f"{summary}: {' '.join([selector, *(f'{k}={v}' for k, v in options.items())])}")
        for name, (selector, options, summary) in METHODS.items()
    ]
    rows += [("option", "normaliser", ", ".join(NORMALISERS)), ("option", "reduction", ", ".join(REDUCTIONS))]
    out.print(table("seam", "name", "what it is", rows=rows))


@app.command()
def demo(
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Where the run lies; default: runs/demo.")] = None,
    size: Annotated[str, typer.Option("--size", help="full, or small: every step, in a minute.")] = "full",
    seed: Annotated[int, typer.Option("--seed", help="Of the generated world.")] = 0,
    address: Address = None,
) -> None:
    """Run the miniature world end to end and compare the selections by fine-tuning."""
    from influray import miniature, pipeline

    if run_dir is not None and ":" in run_dir.parts[0]:
        raise ConfigError("demo: --run-dir is a folder: its world and base model are made there")
    run_dir = run_dir or Path("runs/demo" if size == "full" else f"runs/demo-{size}")
    RunDirectory(run_dir).claim()  # before a world is written into it
    config = miniature.prepare(run_dir / "world", seed=seed, size=size)
    run = pipeline.run(config, {}, run_dir=run_dir, until="report", address=address, console=err)
    _print_outcome(run)


def _print_outcome(run: Run) -> None:
    from influray.report.compare import compare as compare_runs

    _print_comparison(compare_runs([run.directory.path]))
    export.print_selections(run)
    out.print(f"report: {escape(str(run.directory.report))}")


def _print_plan(plan: Plan) -> None:
    from influray.formatting import large, seconds
    from influray.report.sheet import Table as SheetTable

    rows = []
    for step in plan.steps:
        took = "" if step.actual_seconds is None else seconds(step.actual_seconds)
        if step.ratio is not None:
            took += f" ({step.ratio:.2g}x)" if step.ratio < 10 else f" ({step.ratio:.0f}x)"
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
    unit = "CPU hours" if plan.device == "CPU" else "GPU hours"
    columns = ("step", "state", "rows", "tokens", "FLOP", unit, "time", "took", "disk")
    numbers = SheetTable("What it takes", columns, tuple(rows))
    print_tables([numbers], [])
    for step in plan.steps:
        out.print(f"{step.name}: {escape(step.what)}")
    out.print()
    memory = "unknown" if plan.memory_per_worker is None else large(plan.memory_per_worker, "B")
    out.print(f"{plan.workers} x {plan.device}, {large(plan.worker_operations)} FLOP/s each; memory a worker: {memory}")
    if plan.worth_workers is not None:
        out.print(f"workers that pay off: {plan.worth_workers} of {plan.shards} shards (start-up against work)")
    if plan.saturating_workers is not None:
        out.print(f"the driver keeps {plan.saturating_workers} workers busy; featurize is limited by: {plan.limit}")
    for note in plan.notes:
        out.print(escape(note))


def _print_comparison(result: Comparison) -> None:
    from influray.report.compare_sheet import compare_sheet

    sheet = compare_sheet(result)
    print_tables(sheet.tables, [entry.label for entry in result.entries])
    for note in sheet.notes:
        out.print(escape(note))


def _number(text: str, option: str) -> int | float:
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ConfigError(f"{option}: found {text!r}, expected a number of examples or a fraction in (0, 1]") from None


def _short(text: str) -> str:
    text = " ".join(text.split())  # a cell is one line
    return text if len(text) <= SHOWN_OF_A_TURN else text[: SHOWN_OF_A_TURN - 1].rstrip() + "\u2026"


def _marked(text: str) -> str:
    # A pipe shows no reverse video.
    return f"[reverse]{escape(text)}[/reverse]" if out.is_terminal else escape(f"\u27e6{text}\u27e7")


def main() -> None:
    """Run the command line and exit with the status that the module's docstring lists."""
    guard_streams()
    try:
        with interrupt_on_sigterm():  # from here on: a run spends seconds before there is a cluster
            app()
    except USER_ERRORS as error:
        err.print(f"[bold]influray: {type(error).__name__}:[/bold] {escape(str(error))} (exit 2)")
        sys.exit(2)
    except (StorageError, RunStopped) as error:
        err.print(f"[bold]influray: {type(error).__name__}:[/bold] {escape(str(error))} (exit 1)")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns the first into the second, with status 130
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        err.print("influray: interrupted; the same command goes on from here (exit 130)")
        sys.exit(130)
