"""The command line: its verbs stand in the files beside this one, by topic.

Exit status: 0 done; 2 wrong config or data, one message; 1 a bug, with its traceback, or object storage that does not
answer or a cluster that is gone, one message; 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape
from typer.models import CommandInfo

import influray
from influray.cli import ask, export, look, run, start, validate
from influray.cli.loudness import with_loudness
from influray.cli.printing import err, guard_streams, out
from influray.interrupts import interrupt_on_sigterm
from influray.protocols import USER_ERRORS, RunStopped, StorageError

app = typer.Typer(
    help="Choose training data for instruction tuning by influence, evenly over your tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for topic in (start, run, look, validate, ask, export):
    topic.register(app)
# As they are used, one after the other: so the help lists them.
ORDER = (
    *("demo", "init", "configs", "methods", "plan", "pilot", "inspect", "run"),
    *("warmup", "featurize", "score", "select", "tune", "evaluate", "report"),
    *("compare", "export", "query", "shots", "audit", "targets", "mixture"),
    *("validate", "blame", "value", "index", "serve"),
)


def _name(verb: CommandInfo) -> str:
    return verb.name or getattr(verb.callback, "__name__", "")


app.registered_commands.sort(key=lambda verb: ORDER.index(_name(verb)) if _name(verb) in ORDER else len(ORDER))
for verb in app.registered_commands:
    assert verb.callback is not None
    verb.callback = with_loudness(verb.callback)


def _print_version(asked: bool) -> None:
    if asked:
        out.print(influray.__version__)
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Choose training data for instruction tuning by influence, evenly over your tasks."""


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
