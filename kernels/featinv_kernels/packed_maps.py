"""The maps of several layers in one tensor: one position that holds all of their values, one map after the other.

So everything between a backbone and a condition encoder (batches, caches, files, graphs of every backend) handles one
tensor of four axes, whatever sizes the layers have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, C, H, W] of several layers -> [B, K, 1, 1], K the sum of their C * H * W; one map stays as it is."""
    if len(maps) == 1:
        return maps[0]
    return torch.cat([one.flatten(1) for one in maps], dim=1)[:, :, None, None]


def unpack(packed: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """What `pack` was given: maps [B, C, H, W] of these shapes (C, H, W). Without shapes `packed` is the one map."""
    if not shapes:
        return [packed]
    values, maps, start = packed.flatten(1), [], 0
    for channels, height, width in shapes:
        size = channels * height * width
        maps.append(values[:, start : start + size].reshape(-1, channels, height, width))
        start += size
    return maps


def by_location(packed: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
    """The locations of all layers as those of one map [B, C, L, 1], C that of the widest layer, the others padded by 0.

    Cosines and lengths of the vectors at each location are those of the layers' own maps. One map stays as it is.
    """
    if not shapes:
        return packed
    widest = max(channels for channels, _, _ in shapes)
    columns = [F.pad(one.flatten(2), (0, 0, 0, widest - one.shape[1])) for one in unpack(packed, shapes)]
    return torch.cat(columns, dim=2)[..., None]
