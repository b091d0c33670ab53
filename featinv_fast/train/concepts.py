"""What data tell about their images beside a label: concept codes, and prompts made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from featinv_fast.errors import ArgumentError
from featinv_fast.train.data import Data, batch_of

ABSENT = -1  # the code of a concept of an object that is not there


def concept_slots(data: Data, names: Iterable[str]) -> dict[str, int]:
    """How many codes of each concept an image has: 0 for one code of the whole image, else one for each object.

    Raises:
        ArgumentError: the data do not tell one of them.
    """
    codes = batch_of(data, np.zeros(1, dtype=np.int64))
    slots = {}
    for name in names:
        if name not in codes:
            raise ArgumentError(
                "the data do not tell this concept",
                given=name,
                expected=sorted(set(codes) - {"images", "labels"}) or "no concepts: these are plain images",
                remedy="take it out of the recipe's concepts",
            )
        slots[name] = 0 if codes[name].ndim == 1 else int(codes[name].shape[1])
    return slots


class Captions(nn.Module):
    """Prompts that say what is in an image, as a text encoder would give them for a caption.

    One token for each object, the sum of the embeddings of its concepts, and one for each concept of the whole image.

    Args:
        concepts: their numbers of values.
        slots: see `concept_slots`.
        channels: of a token.
    """

    def __init__(self, concepts: Mapping[str, int], slots: Mapping[str, int], channels: int) -> None:
        super().__init__()
        # Code -1, absent, has a row of its own.
        self.tables = nn.ModuleDict({name: nn.Embedding(count + 1, channels) for name, count in concepts.items()})
        self._slots = dict(slots)
        objects = max(slots.values(), default=0)
        self.places = nn.Parameter(torch.randn(objects, channels))

    def forward(self, codes: Mapping[str, Tensor]) -> Tensor:
        """Codes [B] or [B, slots] by concept -> prompts [B, tokens, channels]."""
        embedded = {name: table(codes[name] + 1) for name, table in self.tables.items()}
        objects = [tokens for name, tokens in embedded.items() if self._slots[name]]  # each [B, slots, channels]
        whole = [token[:, None] for name, token in embedded.items() if not self._slots[name]]
        return torch.cat([*([sum(objects, self.places)] if objects else []), *whole], dim=1)
