"""The networks in plain torch, readable on one screen each."""

from featinv_fast.models.autoencoder import Autoencoder
from featinv_fast.models.condition_encoder import ConditionEncoder
from featinv_fast.models.controlnet import ControlNet
from featinv_fast.models.denoiser import Denoiser
from featinv_fast.models.featinv import FeatInv
from featinv_fast.models.unet import UNet

__all__ = ["Autoencoder", "ConditionEncoder", "ControlNet", "Denoiser", "FeatInv", "UNet"]
