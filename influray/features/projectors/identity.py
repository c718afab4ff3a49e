"""No projection at all."""

from __future__ import annotations

import torch
from torch import Tensor

from influray.protocols import ConfigError, Projector


class IdentityProjector(Projector):
    """x -> x: the gradient itself, exactly (variance zero). D must equal P."""

    def __init__(
        self,
        dimension: int,
        parameters: int,
        seed: int,
        device: str | torch.device = "cpu",
    ) -> None:
        if dimension != parameters:
            raise ConfigError(
                f"features.projector.dimension: {dimension}, but the identity projector keeps all {parameters} "
                "coordinates; set it to that, or use another projector"
            )
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        out_BD[:, offset : offset + block_Bp.shape[1]] += block_Bp.to(self.device, out_BD.dtype)
