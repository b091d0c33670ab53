"""All networks of a FeatInv model under one roof; its state dict is the layout of our own checkpoints."""

from __future__ import annotations

from torch import nn

from featinv_fast.config import ModelConfig
from featinv_fast.models.autoencoder import Autoencoder
from featinv_fast.models.condition_encoder import ConditionEncoder
from featinv_fast.models.denoiser import Denoiser


class FeatInv(nn.Module):
    """Condition encoder, denoiser (ControlNet and U-Net) and autoencoder of arXiv 2505.21032.

    Build it under `torch.device("meta")` and load a checkpoint with `load_state_dict(..., assign=True)`:
    no weight is then held twice.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.condition_encoder = ConditionEncoder(config)
        self.denoiser = Denoiser(config)
        self.autoencoder = Autoencoder(config.autoencoder)
