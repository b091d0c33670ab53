"""Reading, converting and writing checkpoints by strict key recipes."""

from featinv_fast.checkpoints.base import BaseModel, load_base, save_base
from featinv_fast.checkpoints.lcm_unet import replace_unet
from featinv_fast.checkpoints.loading import Checkpoint, load
from featinv_fast.checkpoints.lora import fuse_lora
from featinv_fast.checkpoints.saving import convert, save
from featinv_fast.checkpoints.values import check_finite, half_precision_exceptions

__all__ = [
    "BaseModel",
    "Checkpoint",
    "check_finite",
    "convert",
    "fuse_lora",
    "half_precision_exceptions",
    "load",
    "load_base",
    "replace_unet",
    "save",
    "save_base",
]
