"""Making a scorer, and what it needs of the stores.

Stores that cannot carry a scorer are an ArtifactMismatch that says which config makes those that can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from influray.protocols import ArtifactMismatch, Scorer, Stores
from influray.registry import FEATURIZERS, PROJECTORS, WARMED, featurizer_traits, make

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
    traits = featurizer_traits(features.featurizer)
    tasks_K = warmup.tuned_on(config.data.targets) if traits.reads in WARMED else ()
    # A warmup of so many steps has as many epochs, and so checkpoints, as the pool's size makes of them.
    count = len(warmup.checkpoints) or len(tasks_K) or (warmup.epochs if warmup.steps is None else 0)
    if traits.reads not in WARMED:
        count = 1
    weights = (1 / count,) * count if count else ()
    made = features.featurizer, traits.makes, traits.columns
    projector = features.projector
    return Stores(
        *(weights, *made, features.direction, features.blocks, projector.matrices),
        projector=projector.name,
        tasks_K=tasks_K,
    )


def made_stores(manifest_K: Sequence[Mapping[str, Any]], weights: Sequence[float]) -> Stores:
    """Return what datastores of the pool are, from their manifests."""
    first = manifest_K[0]
    traits = featurizer_traits(first["featurizer"])
    return Stores(
        weights=tuple(weights),
        featurizer=first["featurizer"],
        makes=traits.makes,
        columns=traits.columns,
        direction=first.get("direction", ""),  # only gradients have one, and blocks and a projector
        blocks=first.get("blocks", "whole"),
        matrices=first.get("projector", {}).get("matrices", "one"),
        bounds_K=tuple(tuple(one["bounds"]) for one in manifest_K),
        projector=first.get("projector", {}).get("name", ""),
        factors_K=tuple(tuple(tuple(one) for one in found.get("factors", ())) for found in manifest_K),
        tasks_K=tuple(tuple(one["tasks"]) for one in manifest_K) if "tasks" in first else (),
    )


def require(
    scorer: str,
    stores: Stores,
    *,
    makes: Literal["vectors", "counts"] | None = None,
    column: str | None = None,
    gradients: Literal["any", "plain"] | None = None,
    blocks: bool = False,
    factors: bool = False,
    matrices: Literal["one"] | None = None,
    checkpoints: int = 0,
    tuned: bool = False,
) -> None:
    """Raise ArtifactMismatch where the stores have not what a scorer needs, with the config that makes it.

    `makes` is what stands for a row, `column` a plain column; `gradients` come with the norm of the plain one, and
    "plain" ones are pool rows of that direction. `blocks`: the D numbers are split over the modules of the model.
    `factors`: and a module's part holds a matrix for each weight. `matrices`: all checkpoints are projected alike.
    `tuned`: the first checkpoint is the base, and the adapters of the others were trained on targets.
    """
    if tuned and not stores.tasks_K:
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} compares losses under the base with those under adapters of the tasks, "
            f"and these datastores hold {stores.featurizer!r} features without such adapters; set "
            "features.featurizer: checkpoint_loss and warmup.train_on: targets"
        )
    kinds = {"vectors": "feature vectors", "counts": "counts of n-grams"}
    if makes is not None and stores.makes != makes:
        raise _mismatch(scorer, kinds[makes], stores, "makes", makes)
    if column is not None and column not in (*stores.columns, "loss_tokens"):
        raise _mismatch(scorer, f"the column {column!r}", stores, "columns", column)
    if gradients is not None and "grad_norm" not in stores.columns:
        raise _mismatch(scorer, "gradients", stores, "columns", "grad_norm")
    if gradients == "plain" and stores.direction != "sgd":
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs plain gradients of the pool, and these datastores hold the "
            f"{stores.direction!r} direction; set features.direction: sgd"
        )
    if blocks and stores.blocks != "module":
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs a block of features for each LoRA module, and these datastores "
            "hold one for the whole model; set features.blocks: module"
        )
    known = PROJECTORS.keys() - {"factored"}
    if factors and (stores.projector in known or (stores.bounds_K and not all(stores.factors_K))):
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs the gradient of a layer as a smaller matrix, and the projector "
            f"{stores.projector!r} makes one row of numbers of it; set features.projector.name: factored"
        )
    if matrices is not None and stores.matrices != matrices:
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} compares a row's numbers at one checkpoint with those at another, and "
            "these datastores have a projection of its own for each; set features.projector.matrices: one"
        )
    if stores.weights and len(stores.weights) < checkpoints:
        raise ArtifactMismatch(
            f"attribution.scorer: {scorer!r} needs datastores of {checkpoints} checkpoints or more, and there are "
            f"{len(stores.weights)}; set warmup.epochs (or warmup.checkpoints) accordingly"
        )


def _mismatch(scorer: str, needed: str, stores: Stores, trait: str, wanted: str) -> ArtifactMismatch:
    able = [name for name, entry in FEATURIZERS.items() if wanted in getattr(entry.traits, trait)]
    return ArtifactMismatch(
        f"attribution.scorer: {scorer!r} needs {needed}, and these datastores hold {stores.featurizer!r} features, "
        f"which have none; set features.featurizer: {' or '.join(able)}"
    )
