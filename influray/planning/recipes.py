"""Recipes: cheaper ways to choose, each as settings over those of a config."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from influray.config import Config, parse_config, parse_override
from influray.config_messages import near
from influray.config_yaml import set_dotted
from influray.protocols import ConfigError
from influray.registry import featurizer_reads

FULL = "full"  # the config as it is, but for a cascade
AGAIN = "other seeds"  # the full recipe once more: no recipe can agree with it better than it does with itself
HALF = {"features.layers": 0.5}
CHEAP_DIMENSION = 1024  # D of a cheap pass by gradients


@dataclass(frozen=True)
class Recipe:
    """A name and dotted settings over the config's."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """Its settings in a line."""
        return ", ".join(f"{key}: {value}" for key, value in self.settings.items())

    def of(self, config: Config) -> Config:
        """Return the config with its settings. Raises ConfigError as `load_config`."""
        tree = config.model_dump(mode="json", exclude_unset=True)
        try:
            for key, value in self.settings.items():
                set_dotted(tree, key, copy.deepcopy(value))
            return parse_config(tree).made_in(config.run_directory)
        except ConfigError as error:
            raise ConfigError(f"--recipe {self.name}: {error}") from error


def whole(config: Config) -> Config:
    """Return the full recipe: the config without its cascade."""
    return config.model_copy(update={"cascade": None})


def usual(config: Config) -> list[Recipe]:
    """Return the recipes that are tried unless others are asked for, those that the config does not follow already."""
    found = [Recipe(FULL)]
    if featurizer_reads(config.features.featurizer) == "checkpoints":
        found += _of_gradients(config)
    if config.features.featurizer != "representation" and featurizer_reads(config.features.featurizer) != "records":
        plain = {"attribution": {"scorer": "inner_product"}}
        found.append(Recipe("representation", {"features": {"featurizer": "representation"}, **plain}))
    apart = any(one.constraints.near_duplicates is not None for one in config.selectors)  # by vectors, and it has none
    if featurizer_reads(config.features.featurizer) != "records" and not apart:
        found.append(Recipe("bm25", {"features": {"featurizer": "ngram"}, "attribution": {"scorer": "bm25"}}))
    return found


def _of_gradients(config: Config) -> list[Recipe]:
    seed = config.features.projector.seed + 1
    again: dict[str, Any] = {"features.projector.seed": seed}
    if not config.warmup.checkpoints:
        again["warmup.seed"] = config.warmup.seed + 1
    found = [Recipe(AGAIN, again)]
    fewer = _fewer_checkpoints(config)
    if fewer:
        found.append(Recipe("one checkpoint", fewer))
    if config.features.layers == "all":
        found.append(Recipe("half the layers", HALF))
        if fewer:
            found.append(Recipe("one checkpoint + half the layers", {**fewer, **HALF}))
    cascades = {share: {"share": share, "features": {"featurizer": "representation"}} for share in (0.5, 0.25)}
    found += [Recipe(f"cascade {share:.0%}", {"cascade": cascade}) for share, cascade in cascades.items()]
    if fewer:
        found.append(Recipe("one checkpoint + cascade 25%", {**fewer, "cascade": cascades[0.25]}))
    if isinstance(epoch := fewer.get("warmup.epochs"), int):
        warmup = {**config.warmup.model_dump(mode="json", exclude_unset=True), "epochs": epoch}
        projector = config.features.projector.model_dump(mode="json", exclude_unset=True)
        features = {
            **config.features.model_dump(mode="json", exclude_unset=True),
            "featurizer": config.features.featurizer,  # given, for a cheap pass has another default
            "projector": {**projector, "dimension": CHEAP_DIMENSION},
        }
        by = {"share": 0.25, "features": features, "warmup": warmup}
        by["attribution"] = config.attribution.model_dump(mode="json", exclude_unset=True)
        found.append(Recipe("cascade 25% by gradients", {"cascade": by}))
    return found


def _fewer_checkpoints(config: Config) -> dict[str, Any]:
    """Return the settings that leave one checkpoint: the last of imported ones, or a warmup of one epoch."""
    uniform = {} if isinstance(config.attribution.weights, str) else {"attribution.weights": "uniform"}
    if len(config.warmup.checkpoints) > 1:
        last = config.warmup.checkpoints[-1].model_dump(mode="json")
        return {"warmup.checkpoints": [last], **uniform}
    if not config.warmup.checkpoints and config.warmup.steps is None and config.warmup.epochs > 1:
        return {"warmup.epochs": 1, **uniform}
    return {}


def parse(texts: Sequence[str]) -> list[Recipe]:
    """Return the recipes of `--recipe "NAME KEY=VALUE ..."`. Raises ConfigError where one is none."""
    found = []
    for text in texts:
        try:
            name, *settings = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"--recipe {text!r}: {error}; expected NAME KEY=VALUE ...") from None
        if not settings:
            raise ConfigError(f"--recipe {text!r}: expected NAME KEY=VALUE ..., such as 'narrow model.lora.r=4'")
        found.append(Recipe(name, dict(map(parse_override, settings))))
    return found


def chosen(known: Sequence[Recipe], names: Sequence[str]) -> list[Recipe]:
    """Return the recipes of these names, the full one always first. Raises ConfigError where there is none."""
    every = {one.name: one for one in known}
    if len(every) < len(known):
        raise ConfigError("--recipe: a name is given twice, or is that of a recipe which is tried anyhow")
    for name in names:
        if name not in every:
            raise ConfigError(f"--only: no recipe is called {name!r}{near(name, every)} (known: {', '.join(every)})")
    return [one for one in known if one.name == FULL or not names or one.name in names]
