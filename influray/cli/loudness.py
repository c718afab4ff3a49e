"""--quiet and --log-level, which every verb has: what of a run's log the console shows."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Annotated, Any

import typer

from influray.progress import show_from
from influray.protocols import ConfigError

LEVELS = ("debug", "info", "warning", "error")


def _level(name: str) -> str:
    if name not in LEVELS:
        raise ConfigError(f"--log-level: found {name!r}, expected {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    return name


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show results, warnings and errors alone.")]
LogLevel = Annotated[str, typer.Option("--log-level", help="What the console shows: debug, info, warning or error.")]


def with_loudness(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb with the two options, which hold until it ends."""
    kind = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(verb, eval_str=True).parameters.values()
    parameters = [
        *(one.replace(kind=kind) for one in own),
        inspect.Parameter("quiet", kind, default=False, annotation=Quiet),
        inspect.Parameter("log_level", kind, default="info", annotation=LogLevel),
    ]

    @functools.wraps(verb)
    def command(*, quiet: bool, log_level: str, **rest: Any) -> None:
        level = logging.getLevelNamesMapping()[_level(log_level).upper()]
        with show_from(max(level, logging.WARNING) if quiet else level):
            verb(**rest)

    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command
