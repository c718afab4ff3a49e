"""Arguments and options that several verbs have, each declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from influray.cli.printing import err
from influray.plugins import allow_plugins
from influray.protocols import ConfigError

if TYPE_CHECKING:
    from influray.runs import Run

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


@dataclass(frozen=True)
class Given:
    """What every verb of a config is given."""

    config: Path
    overrides: dict[str, Any]
    run_dir: str | None
    address: str | None

    def run(self, until: str) -> Run:
        """Run the config up to a step. Raises as `pipeline.run`."""
        from influray import pipeline

        place = {"run_dir": self.run_dir, "address": self.address}
        return pipeline.run(self.config, self.overrides, until=until, console=err, **place)


def of_config(verb: Callable[..., None], cluster: bool = True) -> Callable[..., None]:
    """Return a verb (given, options of its own) as a command that has the options of every verb of a config.

    `cluster`: whether it may need one.
    """
    own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
    shared = {"run_dir": RunDir, "sets": Sets, **({"address": Address} if cluster else {})}
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("config", kind, annotation=ConfigPath),
        *(one.replace(kind=kind) for one in own),
        *(inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in shared.items()),
        inspect.Parameter("allow_plugins", kind, default=False, annotation=AllowPlugins),
    ]

    def command(config: Path, run_dir: str | None, sets: list[str] | None, **rest: Any) -> None:
        from influray.config import parse_override

        del rest["allow_plugins"]  # its callback has done it
        verb(Given(config, dict(map(parse_override, sets or [])), run_dir, rest.pop("address", None)), **rest)

    command.__doc__ = verb.__doc__
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def number(text: str, option: str) -> int | float:
    """Return a number of examples or a fraction. Raises ConfigError naming the option."""
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ConfigError(f"{option}: found {text!r}, expected a number of examples or a fraction in (0, 1]") from None
