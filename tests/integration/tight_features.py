"""Plug-ins that run out of memory: in batches of more than a few tokens, wherever they stand in a shard; always."""

from __future__ import annotations

import torch
from torch import Tensor

from influray.features.gradient import GradientFeaturizer
from influray.model.batch import Batch

FITS = 128


class TightFeaturizer(GradientFeaturizer):
    fits = FITS

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        if batch.input_ids_BS.numel() > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory: as the allocator says it")
        return super()._run(batch)


class HopelessFeaturizer(TightFeaturizer):
    fits = 0
