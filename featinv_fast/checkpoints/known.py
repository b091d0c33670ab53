"""Which known kind of checkpoint a set of tensor names resembles, for error messages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of checkpoint: patterns that all match at least one key, the most specific kinds first."""

    name: str
    patterns: tuple[str, ...]


KINDS = (
    Kind("a FeatInv checkpoint in our own layout ('featinv')", (r"denoiser\.unet\.", r"condition_encoder\.")),
    Kind(
        "a FeatInv checkpoint in the official layout ('ldm')",
        (r"control_model\.input_hint_block\.block\.", r"model\.diffusion_model\."),
    ),
    Kind("an image-conditioned ControlNet in the LDM layout, not FeatInv's", (r"control_model\.input_hint_block\.\d",)),
    Kind("a text-to-image base model in the LDM layout, without a ControlNet", (r"model\.diffusion_model\.",)),
    Kind("a ControlNet in the LDM layout, without its base model", (r"control_model\.",)),
    Kind("a LoRA file", (r".*(lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up)\b",)),
    Kind(
        "a FeatInv folder in the diffusers layout ('diffusers')", (r"unet\.", r"controlnet\.", r"condition_encoder\.")
    ),
    Kind("a text-to-image base model in the diffusers layout, without a ControlNet", (r"unet\.", r"vae\.")),
    Kind("a diffusers ControlNet alone", (r"controlnet_down_blocks\.",)),
    Kind(
        "a diffusers U-Net alone", (r"down_blocks\.\d+\.resnets\.", r"up_blocks\.\d+\.resnets\.", r"time_embedding\.")
    ),
    Kind("a diffusers autoencoder alone", (r"encoder\.down_blocks\.", r"decoder\.up_blocks\.")),
    Kind("an autoencoder in the LDM layout alone", (r"(first_stage_model\.)?encoder\.down\.",)),
    Kind("a CLIP text encoder alone", (r"(text_model\.)?embeddings\.token_embedding\.",)),
)


def resemblance(keys: Iterable[str]) -> str:
    """What a checkpoint with these tensor names looks like, in words."""
    keys = list(keys)
    for kind in KINDS:
        if all(any(re.match(pattern, key) for key in keys) for pattern in kind.patterns):
            return kind.name
    return "no known layout"
