"""Arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from influray.plugins import allow_plugins

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML config, or RUN/config.yaml of an earlier run.")
]
RunDir = Annotated[
    str | None,
    typer.Option("--run-dir", help="Where the run lies: a folder, or s3://... or gs://...; default: the config's."),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, such as data.max_tokens=512.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="A running Ray cluster; default: a local one of its own.")
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its s3://... or gs://...")]


def _allow(context: typer.Context, given: bool) -> bool:
    # Here alone, for whatever the command opens, and until it ends.
    if given and not context.resilient_parsing:
        context.with_resource(allow_plugins())
    return given


AllowPlugins = Annotated[
    bool,
    typer.Option("--allow-plugins", help="Run the code that a run directory names; trust it first.", callback=_allow),
]
