"""A network of another family than the built-in backbone, which no training of an engine has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_fast.config import FeatureSpec
from featinv_fast.errors import EngineIntegrityError
from featinv_fast.features import Backbone
from featinv_fast.features.sources.weight_files import CONCEPT_HEADS, CONCEPTS_NOTE


class Judge(Backbone):
    """A classifier of scenes that also tells their concepts, by heads on its pooled map.

    Args:
        spec: of its final map, a convolutional network's, which the heads read as its mean over all cells.
        weights: what the recipe "judge" makes: the network and the heads.
        device: where it runs.

    Raises:
        EngineIntegrityError: the file has no heads.
        FeatInvError: see `Backbone`.
    """

    def __init__(self, spec: FeatureSpec, weights: Path, *, device: str | torch.device = "cpu") -> None:
        super().__init__(spec, weights=weights, device=device)
        self._heads = _read_heads(weights, self.device)

    @torch.no_grad()
    def concepts(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits of each concept: [B, 3, values] of those that each object has, [B, 1, values] of the whole scene's.

        The values are those of `demo.CONCEPTS`; the objects stand in the order of `LabelledScenes.concepts`, the
        dominant one first. What is said of an object that is not there means nothing.

        Args:
            pixels: [B, 3, 64, 64], see `preprocess`.
        """
        pooled = self(pixels).mean(dim=(2, 3))  # [B, C]
        return {
            name: torch.unflatten(F.linear(pooled, weight, bias), 1, (slots, -1))
            for name, (slots, weight, bias) in self._heads.items()
        }


def _read_heads(path: Path, device: torch.device) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Of each concept: how many codes an image has, and weight and bias of what tells them."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        note = (file.metadata() or {}).get(CONCEPTS_NOTE)
        names = [name for name in file.keys() if name.startswith(CONCEPT_HEADS)]  # noqa: SIM118 -- it is no mapping
        tensors: dict[str, Any] = {name: file.get_tensor(name).float().to(device) for name in names}
    if note is None:
        raise EngineIntegrityError(
            "this network has no heads of concepts",
            given=path,
            expected="what `featinv train` makes of a recipe with [concepts]",
            remedy="train it by the recipe judge.toml",
        )
    return {
        name: (slots, tensors[f"{CONCEPT_HEADS}{name}.weight"], tensors[f"{CONCEPT_HEADS}{name}.bias"])
        for name, (slots, _) in json.loads(note).items()
    }
