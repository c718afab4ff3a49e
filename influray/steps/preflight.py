"""What can be known to be wrong with a run before its first expensive step: the one list of checks.

`run` makes the first part before anything is written and the second as soon as the catalogues are there; `plan` makes
both, the second where catalogues are. A check raises ConfigError, DataError or ArtifactMismatch, or yields what a
person should know and may want: `run` logs it, `plan` prints it. It looks only where one of its steps is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from influray.protocols import ConfigError
from influray.registry import resolve_method
from influray.scorers.options import expected_stores
from influray.steps import checks_of_config as of_config
from influray.steps import checks_of_data as of_data
from influray.steps.cheap_pass import cheap_run, in_words_of_the_run, passing, subject_of
from influray.steps.subject import Subject

__all__ = ["CONFIG_CHECKS", "DATA_CHECKS", "Subject", "check_config", "check_data"]

ALL = ("cascade", "data", "warmup", "featurize", "score", "select", "tune", "evaluate", "report")
MODEL_STEPS = ("warmup", "featurize", "tune", "evaluate")


@dataclass(frozen=True)
class Check:
    """One thing to look at, and the steps that it matters to."""

    look: Callable[[Subject], Iterable[str] | None]
    steps: tuple[str, ...] = ALL


def check_config(subject: Subject) -> list[str]:
    """Return what should be known of a run before anything is read but its config. Raises as its checks."""
    return _checked(CONFIG_CHECKS, subject)


def check_data(subject: Subject) -> list[str]:
    """Return what should be known of a run whose catalogues are there. Raises as its checks."""
    return _checked(DATA_CHECKS, subject)


def _checked(checks: Iterable[Check], subject: Subject) -> list[str]:
    asked = [check for check in checks if set(check.steps) & set(subject.steps)]
    return [note for check in asked for note in check.look(subject) or ()]


def _cascade(subject: Subject) -> Iterator[str]:
    """The cheap pass can be made, and no selection needs more rows than pass."""
    section = subject.config.cascade
    if section is None:
        return
    for index, selector in enumerate(subject.config.selectors):
        if isinstance(selector.budget, float) and selector.budget > section.share:
            raise ConfigError(
                f"selectors.{index}.budget: {selector.budget:g} of the pool, and cascade.share lets {section.share:g} "
                "of it pass; lower the one or raise the other"
            )
    cheap, place = cheap_run(subject.config, subject.directory)
    with in_words_of_the_run(subject.config):
        yield from check_config(subject_of(cheap, place))
    by = passing(subject.config)["method"]
    methods = {one.name: one.method for one in subject.config.selectors if one.method not in (by, "random")}
    if others := [name for name, method in methods.items() if resolve_method(method) != resolve_method(by)]:
        yield (
            f"cascade.selector: {by!r} says which rows pass, and {', '.join(others)} choose by other methods, whose "
            "rows may not be among them (docs/cost.md); a run with a cascade for each method keeps more"
        )
    if subject_of(cheap, place).reads == "checkpoints":
        passes = [len(expected_stores(one).weights) for one in (cheap, subject.config)]
        if passes[0] >= passes[1] > 0:
            yield (
                f"cascade.warmup: the cheap pass takes gradients of every row at {passes[0]} checkpoints, which costs "
                "what it is to save; set cascade.warmup: {epochs: 1}, or another cascade.features.featurizer"
            )


CONFIG_CHECKS = (
    Check(of_config.place),
    Check(of_config.names),
    Check(of_config.exact_run, ("score",)),
    Check(of_config.asked_for),
    Check(of_config.packages),
    Check(of_config.numbers_of_the_model, MODEL_STEPS),
    Check(of_config.base),
    Check(of_config.checkpoints, ("warmup", "featurize", "score")),
    Check(of_config.resources, MODEL_STEPS),
    Check(of_data.limits, ("select",)),
    Check(of_config.projector, ("featurize",)),
    Check(of_config.layers, ("featurize",)),
    Check(of_config.adapter, ("warmup", "tune")),
    Check(_cascade, ("cascade",)),
)
DATA_CHECKS = (
    Check(of_data.exact_run, ("score",)),
    Check(of_data.budgets, ("select",)),
    Check(of_data.ids_and_sources, ("select",)),
    Check(of_data.positions, MODEL_STEPS),
    Check(of_data.tests_apart, ("cascade", "warmup")),
    Check(of_data.warmup_rates, ("warmup",)),
    Check(of_data.tune_rates, ("tune",)),
)
