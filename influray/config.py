"""The config: YAML into frozen models that refuse what they do not know.

One model per section. Every field's unit and range stand beside it and are checked. `auto` is spelled out
where it exists and resolved once by the step that needs it, which records what it became.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from influray.config_base import Fraction, Positive, Section, Seed, as_written
from influray.config_data import DataConfig
from influray.config_messages import readable
from influray.config_model import FinetuneConfig, ModelConfig, Reporter, WarmupConfig
from influray.config_select import AutoBudget, ConstraintsConfig, SelectorConfig
from influray.config_validate import ValidateConfig
from influray.config_yaml import parse_yaml, set_dotted
from influray.plugins import run_directory_of
from influray.protocols import ConfigError

SEEDS_APART = 2**40 + 15  # of two checkpoints' maps: no seeds that anyone names are so far apart


class ProjectorConfig(Section):
    """The random map from P gradient coordinates to D."""

    name: str = "sparse_jl"  # the fastest at the variance of dense signs (jobs/benchmark_projectors.py)
    dimension: Positive = 8192  # D
    seed: Seed = 0
    # each = a map of its own for every checkpoint, so that the errors of checkpoints do not add up: as good as a larger
    # D at no cost (docs/evidence.md); one = the same map for all, which vog needs
    matrices: Literal["each", "one"] = "each"
    options: dict[str, Any] = Field(default_factory=dict)  # such as nonzeros of sparse_jl

    def at(self, checkpoint: int) -> ProjectorConfig:
        """Return the map of a checkpoint, from 1; that of the first is the same either way."""
        apart = (checkpoint - 1) * SEEDS_APART if self.matrices == "each" else 0
        return self.model_copy(update={"seed": (self.seed + apart) % 2**63, "matrices": "one"})


class FeaturesConfig(Section):
    """What a feature row is."""

    featurizer: str = "gradient"
    options: dict[str, Any] = Field(default_factory=dict)  # of the featurizer, such as n of ngram
    # The nine that follow are those of gradient; other featurizers do not read them, nor do their fingerprints.
    direction: Literal["adam", "sgd", "sign"] = "adam"  # of pool rows; target rows are always plain
    # "lora" = the adapter's matrices; else name endings of linear layers whose own weights are taken, without biases
    weights: Literal["lora"] | Annotated[tuple[str, ...], Field(min_length=1)] = "lora"
    layers: Positive | Fraction | Literal["all"] = "all"  # the last so many decoder layers, or this share of them
    gradient_checkpointing: bool = False  # runs each layer's forward twice and keeps its input alone
    # Stacks of nearly equal lengths, end to end, in one batch; auto = where padded batches are over 10 % padding
    packing: Literal["auto", "on", "off"] = "auto"
    adam_epsilon_mode: Literal["less", "adamw"] = "less"  # epsilon inside or outside the root
    adam_momentum: bool = True  # False drops the momentum term that all rows share
    projector: ProjectorConfig = ProjectorConfig()
    blocks: Literal["whole", "module"] = "whole"  # module = equal parts of the D numbers for LoRA modules, or layers
    store: Literal["float16", "int8", "sign1"] = "float16"  # of a pool row's vector: 16, 8 or 1 bit; targets keep 16
    token_budget: Positive | Literal["auto"] = "auto"  # padded tokens a batch; ngram has no batches
    rows_per_shard: Positive = 512

    def at(self, checkpoint: int) -> FeaturesConfig:
        """Return what makes the rows of a checkpoint, from 1."""
        return self.model_copy(update={"projector": self.projector.at(checkpoint)})

    def layers_of(self, total: int) -> int:
        """Return how many of a model's `total` decoder layers have their gradients taken; a share is rounded up."""
        if isinstance(self.layers, float):
            return math.ceil(as_written(self.layers) * total)
        return total if self.layers == "all" else self.layers

    @field_validator("weights", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "lora" else value

    @field_validator("packing", mode="before")
    @classmethod
    def _yaml_switch(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # what YAML makes of on and off


class AttributionConfig(Section):
    """How features become the attribution matrix."""

    scorer: str = "inner_product"
    weights: Literal["learning_rate", "uniform"] | tuple[float, ...] = "learning_rate"  # one per checkpoint
    options: dict[str, Any] = Field(default_factory=dict)


class CheapFeaturesConfig(FeaturesConfig):
    """What the cheap pass looks at: keys of `features`."""

    featurizer: str = "representation"


class PassConfig(Section):
    """Which rows pass: a selection of the cheap pass whose budget is the share. Ids to include pass in any case."""

    # A selector's or a published method's name, or a plug-in; auto = that of the run's first selector, with its options
    method: str = "auto"
    seed: Seed = 0
    options: dict[str, Any] = Field(default_factory=dict)
    constraints: ConstraintsConfig = ConstraintsConfig()


class CascadeConfig(Section):
    """A cheap pass over the whole pool that chooses which of its rows get the features of the run."""

    share: Fraction = 0.25  # of the rows, rounded down
    features: CheapFeaturesConfig = CheapFeaturesConfig()
    warmup: WarmupConfig | None = None  # of a cheap pass by gradients; none = as `warmup`
    attribution: AttributionConfig = AttributionConfig()
    selector: PassConfig = PassConfig()


class TuneConfig(FinetuneConfig):
    """Fine-tuning from the base on each selection."""

    epochs: Positive = 2
    # Tokens in place of epochs, to compare at equal tokens: the step that reaches so many is the last
    tokens: Positive | None = None
    # Names of selectors; "full" is the whole pool
    selections: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"] = "all"
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    model: ModelConfig | None = None  # another base to tune and judge than the one that selects; none = `model`
    report_to: tuple[Reporter, ...] = ()  # as that of warmup, with rows, tokens and AID of the selection

    @field_validator("selections", "seeds")
    @classmethod
    def _once(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError("one is named twice")
        return value

    @model_validator(mode="after")
    def _one_end(self) -> TuneConfig:
        if self.steps is not None and self.tokens is not None:
            raise ValueError("steps and tokens both say when to stop; give one of them")
        return self


class EvaluationConfig(Section):
    """How tuned models are judged on the held-out records."""

    exact_match: bool = True  # where records carry `answer`
    max_new_tokens: Positive = 256
    token_budget: Positive = 8192


class ResourcesConfig(Section):
    """What the run may use; never part of a fingerprint."""

    workers: Positive | Literal["auto"] = "auto"  # feature workers; auto = one per GPU, else one per CPU
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float | Literal["auto"] = "auto"  # auto = 1 where the cluster has GPUs, else 0; may be a fraction
    threads_per_worker: Positive = 1  # of torch on CPU; part of what makes bytes repeat
    device_map: str | None = None  # such as "auto": one model over the several GPUs of an actor
    training_workers: Positive | Literal["auto"] = "auto"  # data-parallel ranks; auto = GPUs of the cluster, else 1
    max_attempts: Positive = 3  # per shard


class Config(Section):
    """One run."""

    run_dir: str = "runs/default"  # relative to the working directory
    model: ModelConfig
    data: DataConfig
    warmup: WarmupConfig = WarmupConfig()
    features: FeaturesConfig = FeaturesConfig()
    attribution: AttributionConfig = AttributionConfig()
    selectors: tuple[SelectorConfig, ...] = Field(min_length=1)
    cascade: CascadeConfig | None = None  # None = all rows of the pool get features
    tune: TuneConfig | None = None  # None = `influray run` does not tune
    evaluation: EvaluationConfig = EvaluationConfig()
    validation: ValidateConfig = Field(default=ValidateConfig(), alias="validate")  # what `influray validate` does
    resources: ResourcesConfig = ResourcesConfig()

    model_config = ConfigDict(serialize_by_alias=True)  # pydantic keeps the name `validate` for itself

    _run_directory: Path | None = PrivateAttr(default=None)

    @property
    def run_directory(self) -> Path | None:
        """The run directory that the file lies in which this was read from; None for a config of the user's own."""
        return self._run_directory

    def made_in(self, run_directory: Path | None) -> Config:
        """Return the same config, counted as part of a run directory."""
        copy = self.model_copy()
        copy._run_directory = run_directory
        return copy

    @property
    def tuned(self) -> Config:
        """This config with the model that is tuned in the place of the one that selects."""
        other = self.tune.model if self.tune is not None else None
        return self if other is None else self.model_copy(update={"model": other})

    @property
    def models(self) -> tuple[tuple[str, ModelConfig], ...]:
        """The models with their keys: the one that selects, and that of `tune` where it is another."""
        selects = (("model", self.model),)
        return (*selects, ("tune.model", self.tune.model)) if self.tune is not None and self.tune.model else selects

    @property
    def retraining(self) -> FinetuneConfig:
        """How `influray validate` trains: as `tune` does, or its defaults, with what `validate.tune` changes."""
        section = self.tune or TuneConfig()
        fields = {name: getattr(section, name) for name in FinetuneConfig.model_fields}
        return FinetuneConfig(**{**fields, **self.validation.tune})

    @model_validator(mode="after")
    def _retrainings_can_be_made(self) -> Config:
        try:
            _ = self.retraining
        except ValidationError as error:
            raise ValueError(readable(error, "validate.tune", FinetuneConfig)) from None
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        names = [selector.name for selector in self.selectors]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"selectors: the name {twice[0]!r} is used more than once")
        for name, kept in (("full", "the whole pool"), ("base", "the untouched model")):
            if name in names:
                raise ValueError(f"selectors.{names.index(name)}.name: {name!r} is kept for {kept}")
        if self.tune is not None and self.tune.selections != "all":
            unknown = [n for n in self.tune.selections if n not in names and n != "full"]
            if unknown:
                raise ValueError(
                    f"tune.selections: no selector is called {unknown[0]!r} (known: {', '.join(names)}, full)"
                )
        return self


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the config of a YAML file with dotted overrides applied (`selectors.0.budget` -> value).

    Raises:
        ConfigError: no such file, not YAML, or a key, type or value that is wrong, with its dotted key.

    The config.yaml of a run directory names that directory, wherever it was when the run was made.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        within = next((f"; did you mean {file}?" for file in sorted(path.glob("*.yaml"))), "") if path.is_dir() else ""
        raise ConfigError(f"{path}: the config cannot be read: {error}{within}") from error
    try:
        tree = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, found {type(tree).__name__}")
    folder = run_directory_of(path)
    if folder is not None and path.name == "config.yaml":
        tree["run_dir"] = str(folder)  # wherever it was when it was made
    for key, value in (overrides or {}).items():
        set_dotted(tree, key, value)
    return parse_config(tree, where=str(path)).made_in(folder)


def parse_config(tree: Mapping[str, Any], where: str = "config") -> Config:
    """Return the config of a plain tree. Raises ConfigError as `load_config`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(readable(error, where, Config)) from None


def parse_constraints(tree: Mapping[str, Any], where: str = "constraints") -> ConstraintsConfig:
    """Return the constraints of a plain tree. Raises ConfigError as `load_config`."""
    try:
        return ConstraintsConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(readable(error, where, ConstraintsConfig)) from None


def parse_auto_budget(tree: Mapping[str, Any], where: str = "budget") -> AutoBudget:
    """Return a budget that chooses itself, of a plain tree. Raises ConfigError as `load_config`."""
    try:
        return AutoBudget.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(readable(error, where, AutoBudget)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Return (dotted key, value) of `key=value`; the value is read as YAML."""
    key, sep, value = text.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"--set {text!r}: expected key=value, such as selectors.0.budget=0.1")
    try:
        return key.strip(), parse_yaml(value)
    except ConfigError as error:
        raise ConfigError(f"--set {key}: the value {value!r}: {error}") from None


def dump_config(config: Config) -> str:
    """Return YAML that `load_config` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
