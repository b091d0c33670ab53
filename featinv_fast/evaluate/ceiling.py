"""The ceiling of every reconstruction: what the autoencoder alone makes of an image."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from featinv_fast.checkpoints import load
from featinv_fast.models import Autoencoder


def autoencoder_of(
    checkpoint: str | os.PathLike[str], *, device: str | torch.device = "cpu", batch_size: int = 8
) -> Callable[[Tensor], Tensor]:
    """The autoencoder of a checkpoint as a function of images [B, 3, s, s] in [-1, 1]: encode, decode.

    An engine holds only the decoder, so this needs the checkpoint. Latents are the posterior's means: nothing is drawn.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    loaded = load(checkpoint)
    with torch.device("meta"):
        model = Autoencoder(loaded.config.autoencoder)
    prefix = "autoencoder."
    tensors = {
        name.removeprefix(prefix): tensor.float() for name, tensor in loaded.tensors.items() if name.startswith(prefix)
    }
    model.load_state_dict(tensors, assign=True)
    model = model.eval().requires_grad_(requires_grad=False).to(device)

    def reconstruct(images: Tensor) -> Tensor:
        scale = loaded.config.autoencoder.latent_scale
        batches = [images[start : start + batch_size].to(device) for start in range(0, len(images), batch_size)]
        return torch.cat([model.decode(model.encoder(batch)[0] * scale) for batch in batches])

    return reconstruct
