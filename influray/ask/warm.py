"""The featurizers that a run's target rows were made with, one per checkpoint, all in memory at once.

Shape suffixes: Q examples, K checkpoints, D feature.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influray.config import Config
from influray.data.batches import plan_batches
from influray.features.gradient import GradientFeaturizer
from influray.features.token_budget import resolve_token_budget
from influray.model.checkpoints import load_checkpoint
from influray.model.loading import attach_adapter, load_base
from influray.protocols import ArtifactMismatch, FeatureBlock, TokenizedExample
from influray.registry import featurizer_traits, make
from influray.store.run_directory import RunDirectory


@dataclass(frozen=True)
class NewRows:
    """What became of Q examples: `failure_Q` says why one has no feature, "" where it has.

    Where an example failed, its numbers are zeros. `loss_KQ` and `grad_norm_KQ` are NaN where a featurizer has none.
    """

    unit_KQD: tuple[np.ndarray, ...]  # float16, as a datastore would hold them
    norm_KQ: np.ndarray  # float32
    grad_norm_KQ: np.ndarray
    loss_KQ: np.ndarray
    failure_Q: tuple[str, ...]


class WarmFeaturizers:
    """Features of new rows, as those of the targets are made: the plain gradient, or whatever else the run has.

    The base is in memory once: every checkpoint has a tree of modules of its own over the same weights. On a CPU, in
    float32, the layers with LoRA have a merged copy per checkpoint besides.

    Raises:
        ArtifactMismatch: the run's rows have no vectors, or a checkpoint is missing.
        ConfigError: the model cannot be loaded.
    """

    def __init__(self, directory: RunDirectory, config: Config, checkpoints: int, device: str = "cpu") -> None:
        features = config.features
        traits = featurizer_traits(features.featurizer)
        if traits.makes != "vectors" or traits.reads == "records":
            raise ArtifactMismatch(
                f"features.featurizer: {features.featurizer!r} makes no vectors that could be asked with; runs of "
                "gradient or representation can"
            )
        name, options = features.featurizer, features.options
        base: Any = load_base(
            config.model, device=device, device_map=config.resources.device_map if device != "cpu" else None
        )
        self._featurizers: list[Any] = []
        if traits.reads == "base":
            self._featurizers = [make("featurizers", name, options, base, device)]
        else:
            for number in range(1, checkpoints + 1):
                checkpoint = load_checkpoint(directory.checkpoint(number))
                model = attach_adapter(_tree_over(base), checkpoint.adapter)
                given = model, features.at(number), None, "sgd", device
                self._featurizers.append(make("featurizers", name, options, *given))
        limits = features.token_budget, config.data.max_tokens
        self._token_budget = resolve_token_budget(limits[0], base, device, limits[1], self._featurizers[0].compute)

    def rows(self, examples: Sequence[TokenizedExample]) -> NewRows:
        """Return the feature rows of examples, whatever their own row numbers are."""
        numbered = [TokenizedExample(q, e.input_ids_S, e.loss_mask_S) for q, e in enumerate(examples)]
        batches = plan_batches([e.tokens for e in numbered], self._token_budget)
        K, Q = len(self._featurizers), len(numbered)
        units = [np.zeros((Q, featurizer.dimension), np.float16) for featurizer in self._featurizers]
        norm_KQ, grad_norm_KQ, loss_KQ = (np.full((K, Q), fill, np.float32) for fill in (0, np.nan, np.nan))
        failures = [""] * Q
        for k, featurizer in enumerate(self._featurizers):
            for batch in batches:
                block: FeatureBlock = featurizer.compute([numbered[q] for q in batch])
                units[k][block.row_B] = block.feature_BD
                for out_KQ, value_B in (
                    (norm_KQ, block.norm_B),
                    (grad_norm_KQ, block.grad_norm_B),
                    (loss_KQ, block.loss_B),
                ):
                    if value_B is not None:
                        out_KQ[k, block.row_B] = value_B
                for q, reason in block.failures.items():
                    failures[q] = failures[q] or f"{reason} at checkpoint {k + 1}"
        return NewRows(tuple(units), norm_KQ, grad_norm_KQ, loss_KQ, tuple(failures))

    def projected(self, examples: Sequence[TokenizedExample]) -> tuple[np.ndarray, ...]:
        """Return per checkpoint the projected plain gradients [Q, D] float64, not made units.

        Raises:
            ArtifactMismatch: the run's rows are no gradients.
        """
        found = []
        for featurizer in self._featurizers:
            if not isinstance(featurizer, GradientFeaturizer):
                raise ArtifactMismatch(
                    f"tokens: {type(featurizer).__name__} rows are no sums over tokens; only runs with "
                    "features.featurizer: gradient can tell which tokens carry an influence"
                )
            out_QD = np.zeros((len(examples), featurizer.dimension))
            for batch in plan_batches([e.tokens for e in examples], self._token_budget):
                out_QD[batch] = featurizer.projected([examples[q] for q in batch])[1]
            found.append(out_QD)
        return tuple(found)


def _tree_over(base: Any) -> Any:
    """Return a copy of the modules of a model over the very same weights."""
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return copy.deepcopy(base, shared)
