"""Our own layout: the state dict of `featinv_fast.models.FeatInv`, prompts and text encoder beside it."""

from __future__ import annotations

from featinv_fast.checkpoints.architecture import TEXT_ENCODER, model_shapes
from featinv_fast.checkpoints.recipe import Layout
from featinv_fast.config import ModelConfig


def _modules(config: ModelConfig) -> dict[str, str]:
    modules = {name.rpartition(".")[0] for name in model_shapes(config)}
    return {module: module for module in modules}


LAYOUT = Layout(
    name="featinv",
    signature=("condition_encoder.", "denoiser."),
    landmarks=dict,
    modules=_modules,
    text_encoder=TEXT_ENCODER,
)
