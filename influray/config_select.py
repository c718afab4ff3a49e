"""The sections of a config that say what is selected: method, budget, and constraints beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from influray.config_base import Fraction, Name, Positive, Section, Seed


class TokenBudget(Section):
    """A budget in tokens: of all tokens of the chosen rows, never overshot."""

    tokens: Positive


class AutoBudget(Section):
    """A budget that the targets choose (docs/choosing.md); `budget: auto` is short for `budget: {auto: otm}`."""

    auto: Literal["otm"]  # the way: TAROT's, of optimal transport between folds of the targets
    most: Positive | Fraction = 0.2  # examples or a fraction of the rows, which it never exceeds
    folds: Annotated[int, Field(ge=2)] = 10  # of the targets, each compared with the others

    @field_validator("auto", mode="before")
    @classmethod
    def _way(cls, value: Any) -> Any:
        if value != "otm":
            raise ValueError(
                "must be otm; the budget that tuned loss asks for is known after tuning: list the method with several "
                "budgets, and the report says which is the smallest that is enough"
            )
        return value

    def __str__(self) -> str:
        return f"auto by {self.auto}, at most {self.most}"

    @field_validator("most", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        return _amount(value, "must be a number of examples (an integer >= 1) or a fraction in (0, 1]")


def _amount(value: Any, right: str) -> Any:
    """Return a number of examples or a fraction as it is. Raises ValueError with what is right."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(right)
    if value <= 0 or (isinstance(value, float) and value > 1):
        raise ValueError(right)
    return value


def _kind_of_budget(value: Any) -> str:
    if isinstance(value, AutoBudget) or value == "auto" or (isinstance(value, Mapping) and "auto" in value):
        return "AutoBudget"
    if isinstance(value, Mapping | TokenBudget):
        return "TokenBudget"
    return "float" if isinstance(value, float) else "int"


class BoundsConfig(Section):
    """How many rows of one source or task: examples, or a fraction of the budget (a min rounds up, a max down)."""

    min: int | float = 0
    max: int | float | None = None

    @field_validator("min", "max", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        if value is None:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError("must be a number of examples (an integer >= 0) or a fraction in [0, 1]")
        if isinstance(value, float) and value > 1:
            raise ValueError("must be a number of examples (an integer >= 0) or a fraction in [0, 1]")
        return value


class ConstraintsConfig(Section):
    """Constraints of a selection besides its budget."""

    include: tuple[str, ...] | str = ()  # ids that must be in; one text: a file of one id a line, under data.root
    exclude: tuple[str, ...] | str = ()  # ids that must not; likewise
    sources: dict[str, BoundsConfig] = Field(default_factory=dict)
    tasks: dict[str, BoundsConfig] = Field(
        default_factory=dict
    )  # a row is of the task of its highest standardised column
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None  # cosine to a chosen row that leaves a row out

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _ids(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple | set | frozenset):
            return value
        return tuple(one if isinstance(one, bool) else str(one) for one in value)


class SelectorConfig(Section):
    """One selection of the run."""

    name: Name  # of the folder under RUN/selection
    method: str  # a selector's or a published method's name, or a plug-in
    # examples, a fraction of the rows, rounded down, {tokens: n}, or auto, which is short for {auto: otm}, below
    budget: Annotated[
        Annotated[Positive, Tag("int")]
        | Annotated[Fraction, Tag("float")]
        | Annotated[TokenBudget, Tag("TokenBudget")]
        | Annotated[AutoBudget, Tag("AutoBudget")],
        Discriminator(_kind_of_budget),
    ]
    seed: Seed = 0
    options: dict[str, Any] = Field(default_factory=dict)
    constraints: ConstraintsConfig = ConstraintsConfig()

    @field_validator("budget", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if value == "auto":
            return AutoBudget(auto="otm")
        if isinstance(value, Mapping | TokenBudget | AutoBudget):
            return value
        right = "must be a number of examples (an integer >= 1), a fraction in (0, 1], {tokens: n}, or auto"
        return _amount(value, right)
