"""Low-rank additions to a network's layers (arXiv 2106.09685), by peft."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from featinv_fast.errors import MissingPackageError
from featinv_fast.train.randomness import derived_seed

ADAPTER = "default"


def add_lora(module: nn.Module, *, rank: int, seed: int) -> int:
    """Add a matrix of `rank` to every linear layer and convolution; these alone learn. They start at zero.

    Returns:
        The number of layers.

    Raises:
        MissingPackageError: peft is not installed.
    """
    peft = _peft()
    names = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    module.requires_grad_(requires_grad=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "lora"))
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, bias="none"), module, adapter_name=ADAPTER
        )
    return len(names)


def merged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as it was named before `add_lora`, the additions summed into the weights."""
    tensors = {name: tensor for name, tensor in module.state_dict().items() if ".lora_" not in name}
    for path, child in module.named_modules():
        if hasattr(child, "get_delta_weight") and ADAPTER in getattr(child, "lora_A", {}):
            delta: Tensor = child.get_delta_weight(ADAPTER)
            tensors[f"{path}.base_layer.weight"] = tensors[f"{path}.base_layer.weight"] + delta.detach()
    return {name.replace(".base_layer.", "."): tensor.detach() for name, tensor in tensors.items()}


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise MissingPackageError(
            "low-rank additions need peft", given=str(error), remedy="pip install 'featinv-fast[train]'"
        ) from error
