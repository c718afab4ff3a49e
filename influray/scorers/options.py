"""Making a scorer, and what it needs of the stores.

Stores that cannot carry a scorer are an ArtifactMismatch that says which config makes those that can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from influray.protocols import ArtifactMismatch, Scorer, Stores
from influray.registry import FEATURIZERS, featurizer_traits, make

if TYPE_CHECKING:
    from influray.config import Config


def make_scorer(name: str, stores: Stores, options: Mapping[str, Any]) -> Scorer:
    """Return a scorer for these stores.

    Raises:
        ConfigError: as `registry.make`.
        ArtifactMismatch: the stores cannot carry it.
    """
    return make("scorers", name, options, stores)


def expected_stores(config: Config) -> Stores:
    """Return what the stores of a run of `config` will be, as far as it tells: weights are uniform."""
    warmup, features = config.warmup, config.features
    # A warmup of so many steps has as many epochs, and so checkpoints, as the pool's size makes of them.
    count = len(warmup.checkpoints) or (warmup.epochs if warmup.steps is None else 0)
    traits = featurizer_traits(features.featurizer)
    if traits.reads != "checkpoints":
        count = 1
    weights = (1 / count,) * count if count else ()
    made = features.featurizer, traits.makes, traits.columns
    return Stores(weights, *made, features.direction, features.blocks)


def require_vectors(scorer: str, stores: Stores) -> None:
    """Raise ArtifactMismatch where rows have no feature vector."""
    if stores.makes != "vectors":
        raise _mismatch(scorer, "feature vectors", stores, "makes", "vectors")


def require_counts(scorer: str, stores: Stores) -> None:
    """Raise ArtifactMismatch where the datastores hold no counts of n-grams."""
    if stores.makes != "counts":
        raise _mismatch(scorer, "counts of n-grams", stores, "makes", "counts")


def require_gradients(scorer: str, stores: Stores) -> None:
    """Raise ArtifactMismatch where the rows are not gradients, whose plain norm they have."""
    if "grad_norm" not in stores.columns:
        raise _mismatch(scorer, "gradients", stores, "columns", "grad_norm")


def require_column(scorer: str, stores: Stores, column: str) -> None:
    """Raise ArtifactMismatch where rows do not have a plain column."""
    if column not in (*stores.columns, "loss_tokens"):
        raise _mismatch(scorer, f"the column {column!r}", stores, "columns", column)


def _mismatch(scorer: str, needed: str, stores: Stores, trait: str, wanted: str) -> ArtifactMismatch:
    able = [name for name, entry in FEATURIZERS.items() if wanted in getattr(entry.traits, trait)]
    return ArtifactMismatch(
        f"attribution.scorer: {scorer!r} needs {needed}, and these datastores hold {stores.featurizer!r} features, "
        f"which have none; set features.featurizer: {' or '.join(able)}"
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
