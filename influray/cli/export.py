"""The verb that hands a selection to a trainer: export."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.markup import escape

from influray.cli.printing import out
from influray.runs import Run


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(export)


def export(
    selection: Annotated[str, typer.Argument(metavar="RUN[/NAME]", help="A selection; of a run with one, the run.")],
    to: Annotated[str, typer.Option("--to", help="A .jsonl or .parquet file, or a folder; also s3://... or gs://...")],
    form: Annotated[
        str, typer.Option("--format", help="messages, alpaca, sharegpt or prompt-completion.")
    ] = "messages",
    parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet in place of JSON lines.")] = False,
    beside: Annotated[
        str, typer.Option("--with", help="Further columns, with commas between: rank, merit, task, weight.")
    ] = "",
    skip: Annotated[bool, typer.Option("--skip", help="Leave out records that the format cannot carry.")] = False,
) -> None:
    """Write a selection in one form, with settings for TRL, axolotl and LLaMA-Factory beside it."""
    from influray.report.compare import run_and_name
    from influray.runs import located

    folder, name = run_and_name(selection, "export")
    columns = tuple(part.strip() for part in beside.split(",") if part.strip())
    # What was selected is read, and nothing that the run's config names.
    made = located(folder).export(to, name, format=form, parquet=parquet, beside=columns, skip=skip)
    out.print(f"export: {made.records} records in {escape(made.path)}")
    for paths in made.trainers.values():
        out.print(f"  {escape(', '.join(paths))}")
    for note in made.notes:
        out.print(escape(note))


def print_selections(run: Run) -> None:
    """Print where the selections of a run lie, and how to take one to a trainer."""
    from influray.store.selection import RECORDS

    names = [selector.name for selector in run.config.selectors]
    for name in names:
        out.print(f"selected: {escape(str(run.directory.selection(name) / RECORDS))}")
    address = shlex.quote(f"{run.directory.address}/{names[0]}")
    out.print(f"to train on it: influray export {escape(address)} --format messages --to FOLDER")
