"""The `validate` section of a config: experiments of retraining that say what the scores are worth."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from influray.config_base import Fraction, Name, Positive, Section, Seed

Experiment = Literal["lds", "remove", "keep", "leave_one_out", "recall", "stability"]
LEAST_SUBSETS = 8  # below it a percentile interval says nothing: hardly any different samples make up its tails
OWN = "run"  # the name of the run's own attribution matrix among the scorers


class JudgedConfig(Section):
    """A scorer to judge that has no name yet: `attribution` and, where needed, `features` of its own."""

    name: Name  # in tables, and of its folder under RUN/validate/scorers
    scorer: str = "inner_product"
    options: dict[str, Any] = Field(default_factory=dict)
    # Keys of `features` that are to be others than the run's, such as direction: sgd; made under RUN/validate/features
    features: dict[str, Any] = Field(default_factory=dict)


class LdsConfig(Section):
    """Random subsets, trained on one by one: do sums of scores foretell the losses?"""

    subsets: Positive = 48  # 8 at least; the interval narrows with their root
    share: float = 0.25  # of the candidates in each subset, between 0 and 1

    @field_validator("subsets")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value < LEAST_SUBSETS:
            raise ValueError(f"too few for an interval; {LEAST_SUBSETS} are enough for a wide one, 48 for +-.1")
        return value

    @field_validator("share")
    @classmethod
    def _between(cls, value: float) -> float:
        if not 0 < value < 1:
            what = "all subsets would be the same" if value >= 1 else "there would be nothing to train on"
            raise ValueError(f"{what}; give a share between 0 and 1, such as 0.25")
        return value


class RemovalConfig(Section):
    """The best rows of a task taken out (`remove`) or alone (`keep`), beside the worst and random ones."""

    scorer: str = OWN  # whose best and worst rows: a name of `scorers`
    rows: Positive | Fraction = 0.05  # how many: rows, or a fraction of the candidates, rounded down
    draws: Positive = 3  # random draws of as many tokens; 2 at least, for an interval
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"] = "all"

    @field_validator("draws")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value < 2:
            raise ValueError("one random draw has no spread, so there is no interval; 2 are enough")
        return value


class LeaveOneOutConfig(Section):
    """A small training with single rows, or groups of rows, left out of its steps, one after the other."""

    candidates: Annotated[int, Field(ge=2)] = 128  # rows of the training, drawn by `seed`
    groups: Positive = 24  # left out one by one, drawn by `seed`; 8 at least
    rows: Positive = 1  # of a group
    steps: Positive = 16  # optimizer steps

    @model_validator(mode="after")
    def _room(self) -> LeaveOneOutConfig:
        if self.groups < LEAST_SUBSETS:
            raise ValueError(f"groups: {self.groups} are too few for an interval; {LEAST_SUBSETS} are enough")
        if self.groups * self.rows >= self.candidates:
            raise ValueError(
                f"{self.groups} groups of {self.rows} rows are all of {self.candidates} candidates or more; set "
                f"candidates to {self.groups * self.rows + 1} at least"
            )
        return self


class RecallConfig(Section):
    """Rows that are known to be right for a task: how high do the scorers place them?"""

    k: Annotated[tuple[Positive, ...], Field(min_length=1)] = (10, 100)  # first rows that are looked at
    # Task -> ids of pool rows, beside those of the sources that data.targets.TASK.expected_sources names
    ids: dict[Name, tuple[str, ...]] = Field(default_factory=dict)


class StabilityConfig(Section):
    """The run with other seeds and with half of its targets: what of scores and selections stays?"""

    warmup_seeds: tuple[Seed, ...] = (1,)  # each a warmup, features and a matrix of its own
    projection_seeds: tuple[Seed, ...] = (1,)  # each features and a matrix of its own, from the run's warmup
    halves: bool = True  # of each task's targets, one against the other
    selectors: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"] = "all"  # whose choices are compared


class ValidateConfig(Section):
    """What `influray validate` does; a run does none of it by itself."""

    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)] = ("lds",)  # lds, remove, keep, leave_one_out
    # Names (`influray validate` lists them where one is wrong) or sections; auto = the run's own attribution, every
    # scorer that its datastores can carry, representation, bm25, length and random
    scorers: Literal["auto"] | Annotated[tuple[str | JudgedConfig, ...], Field(min_length=1)] = "auto"
    seeds: tuple[Seed, ...] = Field(default=(0, 1), min_length=1)  # of the retrainings, each done with every one
    seed: Seed = 0  # of everything that is drawn: subsets, random rows, candidates, bootstrap samples
    candidates: Positive | Literal["all"] = "all"  # rows of the matrix that take part, drawn by `seed`
    # Keys of `tune` that retrainings take otherwise, such as steps: 50; without `tune` its defaults stand behind them
    tune: dict[str, Any] = Field(default_factory=dict)
    lds: LdsConfig = LdsConfig()
    remove: RemovalConfig = RemovalConfig()
    keep: RemovalConfig = RemovalConfig()
    leave_one_out: LeaveOneOutConfig = LeaveOneOutConfig()
    recall: RecallConfig = RecallConfig()
    stability: StabilityConfig = StabilityConfig()

    @field_validator("experiments", "scorers", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "auto" else value

    @field_validator("seeds", "experiments")
    @classmethod
    def _once(cls, value: Any) -> Any:
        if len(set(value)) < len(value):
            raise ValueError("one is named twice")
        return value

    @field_validator("scorers")
    @classmethod
    def _names_once(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else [getattr(one, "name", one) for one in value]
        if len(set(names)) < len(names):
            raise ValueError("one is named twice")
        return value
