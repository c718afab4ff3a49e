"""The verb that puts the scores to the test: validate."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from influray.cli.options import Address, AllowPlugins, RunPath
from influray.cli.printing import err, out, print_tables
from influray.protocols import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(validate)


def validate(
    run: RunPath,
    experiment: Annotated[
        str | None,
        typer.Option(
            "--experiment", help="Which, with commas between: lds, remove, keep, leave_one_out, recall, stability."
        ),
    ] = None,
    scorers: Annotated[
        str | None, typer.Option("--scorers", help="Which are judged, with commas between; default: all that can be.")
    ] = None,
    subsets: Annotated[int | None, typer.Option("--subsets", help="Random subsets of lds.")] = None,
    share: Annotated[float | None, typer.Option("--share", help="Of the pool in each subset of lds.")] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Tuning seeds, with commas between, such as 0,1,2.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another key of `validate`, such as remove.draws=5."),
    ] = None,
    numbers: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Train again on other rows and compare what that does with what the scores foretell."""
    from influray import pipeline
    from influray.config import parse_override

    del allow_plugins  # its callback has done it
    settings: dict[str, Any] = dict(map(parse_override, sets or []))
    named = {"lds.subsets": subsets, "lds.share": share}
    settings |= {key: value for key, value in named.items() if value is not None}
    for key, text in (("experiments", experiment), ("scorers", scorers)):
        if text is not None:
            settings[key] = "auto" if text == "auto" else [one.strip() for one in text.split(",") if one.strip()]
    if seeds is not None:
        settings["seeds"] = _numbers(seeds)
    found = pipeline.validate(run, settings, address=address, console=err)
    if numbers:
        out.print(json.dumps(found.results, indent=1), markup=False)
        return
    print_tables(found.tables, [])
    for note in found.notes:
        out.print(escape(note))


def _numbers(text: str) -> list[int]:
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds: found {text!r}, expected whole numbers such as 0,1,2") from None
