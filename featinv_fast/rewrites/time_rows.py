"""Exact: the time embedding depends on the step alone, so each step is one row of biases, known before the loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featinv_fast.models import Denoiser
from featinv_fast.models.layers import Linear, ResidualBlock, TimeEmbedding


class RowSlice(nn.Module):
    """One residual block's share of a time-bias row, in place of its time projection."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, row: Tensor) -> Tensor:
        """[T] -> [1, C]."""
        return row[None, self.start : self.stop]


class PassRow(nn.Module):
    """The time embedding's place: the row passes unchanged."""

    def forward(self, row: Tensor, _guidance: None = None) -> Tensor:
        """[T] -> [T]."""
        return row


class TimeProjection(nn.Module):
    """A network's time embedding and all its residual blocks' projections as one linear layer."""

    def __init__(self, embedding: TimeEmbedding, projections: list[Linear]) -> None:
        super().__init__()
        self.embedding = embedding
        weight = torch.cat([p.weight for p in projections])
        self.projection = Linear(weight.shape[1], weight.shape[0], device="meta")
        self.projection.weight = nn.Parameter(weight, requires_grad=False)
        self.projection.bias = nn.Parameter(torch.cat([p.bias for p in projections]), requires_grad=False)

    def forward(self, timesteps: Tensor, guidance: Tensor | None = None) -> Tensor:
        """`timesteps` [S], `guidance` [S] -> [S, sum of the projections' widths]."""
        return self.projection(self.embedding(timesteps, guidance))


class TimeTable(nn.Module):
    """Timesteps to rows of biases for all residual blocks of the ControlNet and the U-Net."""

    def __init__(self, controlnet: TimeProjection, unet: TimeProjection) -> None:
        super().__init__()
        self.controlnet = controlnet
        self.unet = unet

    @property
    def size(self) -> int:
        """T, the length of a row."""
        return int(self.controlnet.projection.out_features + self.unet.projection.out_features)

    def forward(self, timesteps: Tensor, guidance: Tensor | None = None) -> Tensor:
        """`timesteps` [S] (and `guidance` [S] of an LCM U-Net) -> time bias [S, T]."""
        return torch.cat([self.controlnet(timesteps), self.unet(timesteps, guidance)], dim=1)


@torch.no_grad()
def time_rows(denoiser: Denoiser) -> TimeTable:
    """Take the time embeddings out of `denoiser`, in place; its `time` argument becomes a row [T] of the result."""
    start = 0
    parts = []
    for network in (denoiser.controlnet, denoiser.unet):
        projections = []
        for block in network.modules():
            if isinstance(block, ResidualBlock) and isinstance(block.time_projection, Linear):
                stop = start + block.time_projection.out_features
                projections.append(block.time_projection)
                block.time_projection = RowSlice(start, stop)
                start = stop
        assert isinstance(network.time_embedding, TimeEmbedding), "the rewrite was applied before"
        parts.append(TimeProjection(network.time_embedding, projections))
        network.time_embedding = PassRow()
    return TimeTable(*parts)
