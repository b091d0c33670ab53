"""The networks of a distillation: a frozen teacher, and a student that starts as its copy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featinv_fast.models import FeatInv
from featinv_fast.models.layers import Linear, TimeEmbedding
from featinv_fast.train.lora import add_lora, merged_tensors
from featinv_fast.train.settings import DistillRecipe, Learns


class Conditioned(nn.Module):
    """Condition encoder and denoiser with the two prompts: eps from latents, time and features.

    Args:
        model: a FeatInv model.
        prompts: "cond" and "uncond", [1, T, D].
        unconditional_strength: of the control in the branch of the second prompt.
    """

    prompts: Tensor
    control_scales: Tensor

    def __init__(self, model: FeatInv, prompts: Mapping[str, Tensor], unconditional_strength: float = 1.0) -> None:
        super().__init__()
        self.condition_encoder = model.condition_encoder
        self.denoiser = model.denoiser
        self.register_buffer("prompts", torch.cat([prompts["cond"], prompts["uncond"]]), persistent=False)
        scales = torch.tensor([[1.0], [unconditional_strength]]).repeat(1, model.config.control_count)
        self.register_buffer("control_scales", scales, persistent=False)

    def forward(self, x: Tensor, time: Tensor, features: Tensor, embedded: Tensor | None = None) -> Tensor:
        """One branch: `x` [B, 4, h, w], `time` [1 or B], features [B, C, H, W], `embedded` guidance [B] -> eps."""
        condition = self.condition_encoder(features)
        return self.denoiser(x, condition, time, self.prompts[:1], self.control_scales[:1], guidance=embedded)

    def guided(self, x: Tensor, time: Tensor, features: Tensor, scale: Tensor) -> Tensor:
        """Classifier-free guidance as the runtime applies it, with a scale for each item [B]."""
        if bool((scale == 1.0).all()):
            return self(x, time, features)
        time = time.expand(len(x)).repeat(2)  # [2 * B]
        condition = self.condition_encoder(features)
        return self.denoiser(x, condition, time, self.prompts, self.control_scales, scale[:, None, None, None])


def make_student(teacher: FeatInv, recipe: DistillRecipe) -> FeatInv:
    """A student equal to its teacher. What does not learn is shared with the teacher, not copied."""
    config = dataclasses.replace(teacher.config, guidance_embedding_channels=recipe.guidance_channels)
    shared: list[nn.Module] = [teacher.autoencoder]
    if recipe.learns is Learns.CONTROLNET:
        shared.append(teacher.denoiser.unet)
    student = copy.deepcopy(teacher, memo={id(module): module for module in shared})
    student.config = config
    if recipe.guidance_channels:
        _embed_guidance(student, recipe.guidance_channels)
    if recipe.learns is Learns.LORA:
        add_lora(student.denoiser, rank=recipe.lora_rank, seed=recipe.training.seed)
    else:
        student.condition_encoder.requires_grad_()
        student.denoiser.controlnet.requires_grad_()
        if recipe.learns is Learns.ALL:
            student.denoiser.unet.requires_grad_()
    return student


def student_tensors(student: FeatInv) -> dict[str, Tensor]:
    """The student's state dict as a plain model's, low-rank additions merged."""
    return merged_tensors(student)


def _embed_guidance(student: FeatInv, channels: int) -> None:
    """Let the U-Net take the guidance scale as an input; its projection starts at zero, so nothing changes yet."""
    embedding = student.denoiser.unet.time_embedding
    assert isinstance(embedding, TimeEmbedding)
    assert not embedding.guidance_channels, "a plain U-Net"
    embedding.guidance_channels = channels
    embedding.guidance_projection = Linear(channels, embedding.channels, bias=False)
    nn.init.zeros_(embedding.guidance_projection.weight)
