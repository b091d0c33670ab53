"""ControlNet, U-Net and classifier-free guidance as one module: what a sampler calls."""

from __future__ import annotations

from torch import Tensor, nn

from featinv_fast.config import ModelConfig
from featinv_fast.models.controlnet import ControlNet
from featinv_fast.models.unet import UNet


class Denoiser(nn.Module):
    """eps(latents, condition, time), conditional and unconditional branch in one batch.

    Both branches see the same features; they differ in the prompt alone, as in the official sampler.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.controlnet = ControlNet(config)
        self.unet = UNet(config)

    def forward(
        self,
        latents: Tensor,
        condition: Tensor,
        time: Tensor,
        context: Tensor | None,
        control_scales: Tensor,
        guidance_scale: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """One noise prediction.

        Args:
            latents: [B, 4, h, w].
            condition: the condition encoder's output, [B, channels, h, w].
            time: [1] or [B] timesteps; a row of the time-bias table where the time embedding was rewritten.
            context: [G, T, D] prompts: G = 1 for one branch, 2 for guidance (prompt first, empty prompt second);
                None where the prompts were made constants.
            control_scales: [G, 13] strength of each ControlNet residual in each branch.
            guidance_scale: [] for G = 2 (arXiv 2207.12598, eq. 6 with w + 1); None for one branch.
            guidance: [1] guidance scale of an LCM U-Net with a guidance embedding.

        Returns:
            eps [B, 4, h, w] in the dtype of `latents`.
        """
        branches = control_scales.shape[0]
        dtype = self.unet.conv_out.weight.dtype
        x = self.for_branches(latents.to(dtype), branches)  # [G * B, 4, h, w]
        condition = self.for_branches(condition.to(dtype), branches)  # [G * B, channels, h, w]
        embedded = self.unet.time_embedding(time, guidance)
        controls, activations = self.encode(x, condition, time, embedded, context)
        scales = control_scales.to(dtype)[:, :, None, None, None, None]  # [G, 13, 1, 1, 1, 1]
        residuals = [
            (r.reshape(branches, latents.shape[0], *r.shape[1:]) * scales[:, i]).flatten(0, 1)
            for i, r in enumerate(controls)
        ]
        eps = self.unet.decode(activations, embedded, context, residuals).to(latents.dtype)
        if guidance_scale is None:
            return eps
        conditional, unconditional = eps.reshape(
            2, *latents.shape
        ).unbind()  # not chunk: it would fix the batch size in an export
        return unconditional + guidance_scale * (conditional - unconditional)

    def encode(
        self, x: Tensor, condition: Tensor, time: Tensor, embedded: Tensor, context: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The ControlNet's 13 outputs, and the 13 activations of the U-Net's encoder: neither needs the other.

        `time` is as `forward` has it, `embedded` as the U-Net embeds it.
        """
        return self.controlnet(x, condition, time, context), self.unet.encoder(x, embedded, context)

    def for_branches(self, x: Tensor, branches: int) -> Tensor:
        """What all branches have in common, once for each: [B, ...] -> [branches * B, ...]."""
        return x.repeat(branches, 1, 1, 1)
