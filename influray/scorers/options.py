"""Making a scorer: its options, and what it needs of the stores.

A wrong option is a ConfigError at its dotted key; stores that cannot carry a scorer are an ArtifactMismatch that says
which config makes those that can.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from influray.protocols import ArtifactMismatch, ConfigError, Scorer, Stores
from influray.registry import FEATURIZERS, featurizer_reads, resolve

if TYPE_CHECKING:
    from influray.config import Config

KEY = "attribution.options"
GRADIENT = "gradient"
VECTORLESS = ("loss", "ngram")  # featurizers that make plain numbers or counts


def make_scorer(name: str, stores: Stores, options: Mapping[str, Any]) -> Scorer:
    """Return the scorer of a table name or "package.module:Class" for these stores.

    Raises:
        ConfigError: no such scorer, an option it does not have, or a value it does not take.
        ArtifactMismatch: the stores cannot carry it.
    """
    kind = resolve("scorers", name, "attribution.scorer")
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    for parameter in parameters:
        if parameter.name in known and parameter.default is parameter.empty and parameter.name not in options:
            raise ConfigError(f"{KEY}.{parameter.name}: required by {name!r}, but not given")
    for option in options:
        if option not in known and len(known) == len(parameters):
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            right = f"known: {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{KEY}.{option}: {name!r} has no such option{hint} ({right})")
    return kind(stores, **options)


def expected_stores(config: Config) -> Stores:
    """Return what the stores of a run of `config` will be, as far as it tells: weights are uniform."""
    warmup, features = config.warmup, config.features
    # A warmup of so many steps has as many epochs, and so checkpoints, as the pool's size makes of them.
    count = len(warmup.checkpoints) or (warmup.epochs if warmup.steps is None else 0)
    if featurizer_reads(features.featurizer) != "checkpoints":
        count = 1
    return Stores((1 / count,) * count if count else (), features.featurizer, features.direction, features.blocks)


def one_of(value: Any, known: Sequence[str], option: str) -> str:
    """Return `value` if it is one of the words. Raises ConfigError at the option."""
    if value not in known:
        raise ConfigError(f"{KEY}.{option}: found {value!r}, expected {' or '.join(known)}")
    return value


def number_above(value: Any, least: float, option: str) -> float:
    """Return `value` as a float if it is a finite number above `least`. Raises ConfigError at the option."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < math.inf:
        raise ConfigError(f"{KEY}.{option}: found {value!r}, expected a number above {least:g}")
    return float(value)


def boolean(value: Any, option: str) -> bool:
    """Return `value` if it is true or false. Raises ConfigError at the option."""
    if not isinstance(value, bool):
        raise ConfigError(f"{KEY}.{option}: found {value!r}, expected true or false")
    return value


def number_from(value: Any, low: float, option: str, most: float = math.inf) -> float:
    """Return `value` as a float if it is a finite number in [low, most]. Raises ConfigError at the option."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= most or value == math.inf:
        right = f"a number from {low:g} to {most:g}" if most < math.inf else f"a number of {low:g} or more"
        raise ConfigError(f"{KEY}.{option}: found {value!r}, expected {right}")
    return float(value)


def require_vectors(scorer: str, stores: Stores) -> None:
    """Raise ArtifactMismatch where rows have no feature vector. A plug-in's are taken for what it says."""
    if stores.featurizer in VECTORLESS:
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs feature vectors, and these datastores hold {stores.featurizer!r} "
            f"features; set features.featurizer: {GRADIENT} or representation"
        )


def require_gradients(scorer: str, stores: Stores) -> None:
    """Raise ArtifactMismatch where the rows are not gradients. A plug-in's rows are taken for what it says."""
    if stores.featurizer in FEATURIZERS and stores.featurizer != GRADIENT:
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs gradients, and these datastores hold {stores.featurizer!r} "
            f"features; set features.featurizer: {GRADIENT}"
        )


def require_plain_gradients(scorer: str, stores: Stores) -> None:
    """Raise ArtifactMismatch where pool rows are not plain gradients, with their norms."""
    require_gradients(scorer, stores)
    if stores.direction != "sgd":
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs plain gradients of the pool, and these datastores hold the "
            f"{stores.direction!r} direction; set features.direction: sgd"
        )


def require_blocks(scorer: str, stores: Stores) -> None:
    """Raise ArtifactMismatch where the D numbers are not split over the modules of the model."""
    if stores.blocks != "module":
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs a block of features for each LoRA module, and these datastores "
            "hold one for the whole model; set features.blocks: module"
        )


def require_checkpoints(scorer: str, stores: Stores, least: int) -> None:
    """Raise ArtifactMismatch where there are fewer than `least` checkpoints."""
    if stores.weights and len(stores.weights) < least:
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs datastores of {least} checkpoints or more, and there are "
            f"{len(stores.weights)}; set warmup.epochs (or warmup.checkpoints) accordingly"
        )
