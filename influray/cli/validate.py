"""The verbs that put the scores to the test or to use: validate, blame, pilot; value for rows that are on offer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from influray.cli.options import Address, AllowPlugins, Given, RunPath, number, of_config
from influray.cli.printing import err, out, print_tables
from influray.protocols import ConfigError

if TYPE_CHECKING:
    from influray.report.validation import Validation


Seeds = Annotated[str | None, typer.Option("--seeds", help="Tuning seeds, with commas between, such as 0,1,2.")]
Numbers = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(validate)
    app.command()(blame)
    app.command()(value)
    app.command("pilot")(of_config(pilot))


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
    seeds: Seeds = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another key of `validate`, such as remove.draws=5."),
    ] = None,
    numbers: Numbers = False,
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Train again on other rows and compare what that does with what the scores foretell."""
    from influray import pipeline

    del allow_plugins  # its callback has done it
    settings = _settings(sets, seeds)
    named = {"lds.subsets": subsets, "lds.share": share}
    settings |= {key: value for key, value in named.items() if value is not None}
    for key, text in (("experiments", experiment), ("scorers", scorers)):
        if text is not None:
            settings[key] = "auto" if text == "auto" else [one.strip() for one in text.split(",") if one.strip()]
    _print(pipeline.validate(run, settings, address=address, console=err), numbers)


def blame(
    run: RunPath,
    failing: Annotated[
        list[str],
        typer.Option("--failing", metavar="FILE", help="Records that the tuned model fails on; may be repeated."),
    ],
    passing: Annotated[
        list[str] | None, typer.Option("--passing", metavar="FILE", help="Records that it passes, to set them against.")
    ] = None,
    selection: Annotated[
        str, typer.Option("--selection", help="Whose rows; default: the config's first; full is the pool.")
    ] = "",
    rows: Annotated[str, typer.Option("--rows", help="Suspects: rows, or a fraction of the selection's.")] = "0.05",
    draws: Annotated[int, typer.Option("--draws", help="Random removals to compare with.")] = 3,
    seeds: Seeds = None,
    suspects: Annotated[bool, typer.Option("--suspects", help="List them and tune nothing.")] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of `validate`, such as tune.steps=50.")
    ] = None,
    numbers: Numbers = False,
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Find the rows behind records that a tuned model fails on, and prove it by their removal."""
    from influray import pipeline

    del allow_plugins  # its callback has done it
    settings = _settings(sets, seeds)
    try:
        count = float(rows) if "." in rows else int(rows)
    except ValueError:
        raise ConfigError(f"--rows: found {rows!r}, expected a number of rows or a fraction such as 0.05") from None
    given: dict[str, Any] = {"selection": selection, "rows": count, "draws": draws, "prove": not suspects}
    found = pipeline.blame(run, failing, passing or (), settings, **given, address=address, console=err)
    _print(found, numbers)


def value(
    run: RunPath,
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="FILE", help="Rows that the run has never seen; may be repeated."),
    ],
    selection: Annotated[
        str, typer.Option("--selection", help="What they are to add to; default: the config's first.")
    ] = "",
    rows: Annotated[int, typer.Option("--rows", help="Random rows of them that are priced.")] = 1000,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Most of the best rows: a number or a fraction; default: the selection's rows."),
    ] = None,
    near: Annotated[float, typer.Option("--near", help="Cosine of features from which a row is a copy.")] = 0.98,
    to: Annotated[Path | None, typer.Option("--to", help="Write the records of the best rows there.")] = None,
    numbers: Annotated[str | None, typer.Option("--json", help="Write it all as JSON; - prints it.")] = None,
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Say what rows on offer would add to a selection, which of them are best, and what is still wanted."""
    from influray import pipeline
    from influray.report.sheet import check_output_path
    from influray.report.value import value_notes, value_tables
    from influray.store.artifact import write_json

    del allow_plugins  # its callback has done it
    plain = None if numbers is None or numbers == "-" else check_output_path(numbers, "--json")
    records = None if to is None else check_output_path(to, "--to")
    options = {"selection": selection, "rows": rows, "near": near}
    options["budget"] = None if budget is None else number(budget, "--budget")
    found = pipeline.value(run, data, to=records, address=address, console=err, **options)
    told = err if numbers == "-" else out
    if numbers == "-":
        typer.echo(json.dumps(found))
    else:
        print_tables(value_tables(found, out.width), [])
    for note in value_notes(found):
        told.print(escape(note))
    if plain is not None:
        write_json(plain, found)
    for what, path in (("numbers", plain), ("records", records)):
        if path is not None:
            told.print(f"{what}: {escape(str(path))}")


def pilot(
    given: Given,
    rows: Annotated[int, typer.Option("--rows", help="Rows of the pool to try on, drawn by --seed.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample.")] = 0,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar='"NAME KEY=VALUE ..."', help="A recipe of your own; may be repeated."),
    ] = None,
    only: Annotated[str | None, typer.Option("--only", help="Recipes to try, with commas between.")] = None,
    selector: Annotated[
        str, typer.Option("--selector", help="Whose choice is compared; default: the config's first.")
    ] = "",
    keep: Annotated[
        float | None,
        typer.Option("--keep", help="Merit for the cheapest to keep; default: as much as other seeds, 0.9 at most."),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Tune on what each recipe chooses, and on random rows.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="Write the config of the cheapest recipe there.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Price on: cpu, h100, h200, a100, l40s.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="How many of these.")] = None,
    numbers: Numbers = False,
) -> None:
    """Try cheaper recipes on a sample of the pool: what each keeps of the full one's choice, and what it costs."""
    from influray import pipeline
    from influray.config import dump_config

    if to is not None and to.exists():
        raise ConfigError(f"--to: {to} is there already; name a new file")
    names = [one.strip() for one in (only or "").split(",") if one.strip()]
    options = {"rows": rows, "seed": seed, "selector": selector, "least": keep, "tune": tune}
    found, best = pipeline.pilot(
        given.config,
        given.overrides,
        run_dir=given.run_dir,
        recipes=recipe or (),
        only=names,
        address=given.address,
        console=err,
        device=device,
        workers=workers,
        **options,
    )
    _print(found, numbers)
    if to is not None and best is not None:
        to.write_text(dump_config(best), encoding="utf-8")
        out.print(f"config: {escape(str(to))}")


def _print(found: Validation, numbers: bool) -> None:
    if numbers:
        out.print(json.dumps(found.results, indent=1), markup=False)
        return
    print_tables(found.tables, [])
    for note in found.notes:
        out.print(escape(note))


def _settings(sets: list[str] | None, seeds: str | None) -> dict[str, Any]:
    from influray.config import parse_override

    found = dict(map(parse_override, sets or []))
    if seeds is not None:
        try:
            found["seeds"] = [int(one) for one in seeds.split(",")]
        except ValueError:
            raise ConfigError(f"--seeds: found {seeds!r}, expected whole numbers such as 0,1,2") from None
    return found
