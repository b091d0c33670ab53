"""Exact: biases of convolutions move to where they cost nothing.

On an NVIDIA GPU torch adds the bias of a convolution in a kernel of its own, as long as a norm at small batches. A norm
that calls the fused operation adds a bias anyway, the time bias, and a skip that is a matrix product has one too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featinv_fast.models.layers import Conv2d, ResidualBlock
from featinv_fast.rewrites.engine_model import EngineModel
from featinv_fast.rewrites.time_rows import RowSlice


class StoredBias(nn.Module):
    """A bias in the place of a time projection, for blocks that know no time."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, _time: None = None) -> Tensor:
        """[1, C]."""
        return self.bias[None]


@torch.no_grad()
def fold_biases(model: EngineModel) -> int:
    """Move the biases of the residual blocks of `model`, weights loaded, in place.

    That of the first convolution goes into the rows of the time table, or is stored where there is no time; that of
    the second one into the skip's where that has one of the same dtype.

    Returns:
        How many biases were moved.
    """
    moved = 0
    rows = _time_biases(model)  # [T]
    for block in [*model.denoiser.modules(), *model.decoder.modules()]:
        if not isinstance(block, ResidualBlock):
            continue
        first, second = block.conv_in.bias, block.conv_out.bias
        if first is not None and isinstance(block.time_projection, RowSlice):
            rows[block.time_projection.start : block.time_projection.stop] += first.to(rows.dtype)
        elif first is not None:
            block.time_projection = StoredBias(first)
        moved += first is not None
        block.conv_in.bias = None
        third = block.skip.bias if isinstance(block.skip, Conv2d) else None
        if second is not None and third is not None and second.dtype == third.dtype:
            block.skip.bias = nn.Parameter(second + third, requires_grad=False)
            block.conv_out.bias = None
            moved += 1
    _set_time_biases(model, rows)
    return moved


def _time_biases(model: EngineModel) -> Tensor:
    """A copy of what the time table adds, ControlNet first as in its rows: [T]."""
    table = model.time_embedding
    return torch.cat([table.controlnet.projection.bias, table.unet.projection.bias])


def _set_time_biases(model: EngineModel, rows: Tensor) -> None:
    projections = (model.time_embedding.controlnet.projection, model.time_embedding.unet.projection)
    sizes = [projection.out_features for projection in projections]
    parts = torch.split(rows, sizes)
    for projection, part in zip(projections, parts, strict=True):
        projection.bias = nn.Parameter(part.clone(), requires_grad=False)
