"""What a step of a run is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from influray.config import Config
from influray.steps.context import StepContext, StepResult
from influray.store.run_directory import RunDirectory

Recorded = Mapping[str, Mapping[str, Any]]  # the steps of run.json


def _never(config: Config, directory: RunDirectory, recorded: Recorded) -> str:
    return ""


@dataclass(frozen=True)
class Step:
    """A step of a run.

    `run` brings its artifact up to date. `made_from` are the dotted keys of the config that it reads beside what the
    steps before it made, and `describe` puts them in words. `stale` returns other reasons why what is there does not
    serve, "" where there is none; it starts nothing and writes nothing. `section` is the one that a config must have
    for the step to be part of its run, "" where every run has it.
    """

    name: str
    run: Callable[[StepContext], StepResult]
    made_from: tuple[str, ...] = ()
    describe: Callable[[Config], str] = lambda config: ""
    stale: Callable[[Config, RunDirectory, Recorded], str] = _never
    section: str = ""

    def wanted(self, config: Config) -> bool:
        """Return whether a run of the config has the step."""
        return not self.section or getattr(config, self.section) is not None
