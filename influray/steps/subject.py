"""A run that is about to begin, as the checks before it see it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.config import Config
from influray.protocols import ConfigError
from influray.registry import WARMED, featurizer_reads
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue


@dataclass(frozen=True)
class Subject:
    """A run that is about to begin: `steps` are those that it runs, `until` what the user asked for."""

    config: Config
    directory: RunDirectory
    steps: tuple[str, ...]
    until: str = "report"

    @cached_property
    def reads(self) -> str:
        """What the features are made from (see protocols.Featurizer)."""
        return featurizer_reads(self.config.features.featurizer)

    @property
    def trains(self) -> bool:
        """Whether a warmup is trained, and not imported or left out."""
        return "warmup" in self.steps and self.reads in WARMED and not self.config.warmup.checkpoints

    @property
    def loads_model(self) -> bool:
        """Whether one of its steps holds the base in memory."""
        features = {"warmup", "featurize"} & set(self.steps) and self.reads != "records"
        return bool(features or ({"tune", "evaluate"} & set(self.steps) and self.config.tuned is self.config))

    @cached_property
    def pool(self) -> Catalogue:
        """The catalogue of the pool."""
        from influray.data.catalogue import Catalogue

        return Catalogue(self.directory.data("pool"))

    @property
    def whole_rows(self) -> int:
        """Rows of the pool with those that did not pass a cascade."""
        return len(self.pool) + self.pool.never_scored


def settle_checkpoints(config: Config) -> Config:
    """Return the config with what imported checkpoints say of it, where the features read them.

    Raises:
        ConfigError: as `settle_imported`.
    """
    if not config.warmup.checkpoints or featurizer_reads(config.features.featurizer) not in WARMED:
        return config
    from influray.model.imported import settle_imported

    return settle_imported(config)


def require_unfitted(config: Config) -> None:
    """Raise ConfigError where gradients of targets would be taken at adapters that were trained on these targets."""
    if config.warmup.train_on == "targets" and featurizer_reads(config.features.featurizer) == "checkpoints":
        raise ConfigError(
            "warmup.train_on: targets trains the adapters on the targets, and features.featurizer "
            f"{config.features.featurizer!r} would take the gradient of a target at a model that was fitted to it, "
            "which is what the training left of it; take checkpoint_loss, or warmup.train_on: pool"
        )


def context_length(base: Path) -> int | None:
    """Return how many tokens a base has positions for; None where it is not a folder here, or does not tell.

    Raises:
        ConfigError: its config.json cannot be read.
    """
    path = base / "config.json"
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_bytes())
        return _context(settings.get("text_config", settings))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"model.base: {path} cannot be read as a model's config: {error}") from None


def _context(settings: dict[str, Any]) -> int | None:
    """Return the context length of a model's config.

    max_position_embeddings is the whole context, scaled or not; configs that scale rotary positions by `linear` or
    `dynamic` state the length before the scaling, as does `yarn` where it says that this is the original one. A
    sliding window bounds what a token sees, not where it may stand.
    """
    length = settings.get("max_position_embeddings", settings.get("n_positions"))
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        return None
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        return length
    kind, factor = scaling.get("rope_type", scaling.get("type", "default")), scaling.get("factor", 1.0)
    before = kind in ("linear", "dynamic") or (
        kind == "yarn" and scaling.get("original_max_position_embeddings") == length
    )
    return int(length * factor) if before and isinstance(factor, int | float) and factor > 1 else length


class under:  # noqa: N801 - reads as a statement
    """Put a dotted key before that of an error."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigError):
            raise ConfigError(f"{self._key}.{error}") from error
