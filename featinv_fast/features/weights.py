"""The name of a network's weights: a SHA-256 that is the same whatever file they came from.

Which network made a feature map is part of what the map is: maps of two trainings of one architecture have the same
shape and mean different things. The hash covers what the map depends on and no library derives again:

- every floating-point tensor of the loaded model, by sorted name, with dtype, shape and little-endian bytes;
- not the classifier or pooler, which reads the map: the same backbone with another head, or none, has the same hash;
- not the tables of positions, which libraries interpolate to the size of the images, so that one network has one hash
  at every size. No training changes these alone;
- no integers: they count batches or are indices that the architecture makes.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

# Of a name's last part, as in `pos_embed`, `patch_pos`, `relative_position_bias_table`, `attention_biases`.
_POSITIONS = re.compile(r"(?:^|_)pos(?:$|_|ition)|attention_bias|relative_coord")


def weights_sha256(model: Any, heads: Collection[str] | None = None) -> str:
    """The hash, in hexadecimal, of the weights of a model on any device.

    Args:
        model: the module.
        heads: names of the modules that are left out; None asks a timm model for its classifier.
    """
    digest = hashlib.sha256()
    heads = classifiers(model) if heads is None else heads
    for name, tensor in sorted(model.state_dict().items()):
        owner, _, last = name.rpartition(".")
        if tensor.is_floating_point() and not within(owner, heads) and not _POSITIONS.search(last):
            shape = "x".join(map(str, tensor.shape))
            digest.update(f"{name}:{str(tensor.dtype).removeprefix('torch.')}:{shape};".encode())
            digest.update(_little_endian(tensor).numpy().data)
    return digest.hexdigest()


def classifiers(model: Any) -> tuple[str, ...]:
    """Names of the modules that timm calls this architecture's classifier; none of a model that is not timm's."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def within(path: str, modules: Collection[str]) -> bool:
    """Whether a path is that of one of `modules`, or of a part of one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _little_endian(tensor: Tensor) -> Tensor:
    """The bytes of `tensor` in the order of its values, [N]."""
    values = tensor.detach().cpu().contiguous().flatten()[:, None].view(torch.uint8)  # [values, bytes of one]
    return (values if sys.byteorder == "little" else values.flip(1)).contiguous().flatten()
