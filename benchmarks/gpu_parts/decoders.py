"""The full decoder, ours and plain, and a decoder of TAESD's shape, which shows what a small one would save."""

from __future__ import annotations

import copy

import torch
from gpu_parts import weights
from gpu_parts.context import DTYPES, Context, RedGateError, per_second, timing_entries
from gpu_parts.end_to_end import invert
from torch import Tensor, nn

from featinv_fast import Runtime
from featinv_fast.commands.measuring import relative_error

WIDTH = 64
DOUBLINGS = 3
BLOCKS = 3  # of each resolution but the last, which has one
LCM_STEPS = 4
# Of the plain decoder in half precision; a decoder that computes something else is off by about 1.
TOLERANCE = 0.1
OURS, PLAIN, NHWC, SMALL = "ours", "torch eager", "torch eager, channels last", "TAESD's shape"


class SmallBlock(nn.Module):
    """Three convolutions with a skip."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return torch.relu(self.layers(x) + x)


def small_decoder(latent_channels: int) -> nn.Sequential:
    """A decoder with the layers of TAESD (1.2 M parameters) and random weights: [B, 4, h, w] -> [B, 3, 8h, 8w]."""
    layers: list[nn.Module] = [nn.Conv2d(latent_channels, WIDTH, 3, padding=1), nn.ReLU()]
    for _ in range(DOUBLINGS):
        layers += [SmallBlock() for _ in range(BLOCKS)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, SmallBlock(), nn.Conv2d(WIDTH, 3, 3, padding=1))


@torch.inference_mode()
def run(context: Context) -> None:
    """Compare at each batch size in the first precision."""
    precision = context.sizes.precisions[0]
    dtype = DTYPES[precision]
    folder = weights.engine(context)
    session = weights.session(context, folder, precision)
    model, _ = weights.plain_model(context, dtype)
    nhwc = copy.deepcopy(model.autoencoder).to(memory_format=torch.channels_last)
    small = small_decoder(context.sizes.model.latent_channels).to(context.device, dtype)
    small = small.to(memory_format=torch.channels_last)
    for batch in context.sizes.step_batches:
        latents, _ = weights.inputs(context, batch)
        contenders = {
            PLAIN: lambda x=latents: model.autoencoder.decode(x),
            NHWC: lambda x=latents: nhwc.decode(x.contiguous(memory_format=torch.channels_last)),
            OURS: lambda x=latents: session.run("decoder", x),
            SMALL: lambda x=latents: small(x.to(dtype).contiguous(memory_format=torch.channels_last)),
        }
        common = {"batch": batch, "precision": str(precision)}
        with context.failures_noted("decoder", **common):
            expected = contenders[PLAIN]()
            errors = {name: relative_error(contenders[name](), expected) for name in (NHWC, OURS)}
            if not max(errors.values()) <= TOLERANCE:
                raise RedGateError(f"relative errors {errors}, tolerance {TOLERANCE}")
            seconds = context.interleave(contenders, share=0.3, calls=2)
            for name in contenders:
                entries = timing_entries(seconds, name, PLAIN)
                if name in errors:
                    entries["gate"] = {"relative": errors[name], "tolerance": TOLERANCE}
                rate = per_second(batch, entries["seconds"])
                context.emit("decoder", contender=name, **common, **entries, images_per_second=rate)
    runtime = Runtime(folder, backend="torch", device=str(context.device), precision=precision)
    for batch in context.sizes.batches:
        with context.measured("LCM and TAESD's shape", batch=batch, precision=str(precision), steps=LCM_STEPS) as row:
            _, maps = weights.inputs(context, batch)
            maps = maps.cpu()

            def images(features: Tensor = maps) -> Tensor:
                options = {"sampler": "lcm", "steps": LCM_STEPS, "guidance_scale": 1.0, "output_type": "latent"}
                found = invert(runtime, features, **options).latents.to(context.device, dtype)
                pixels = small(found.contiguous(memory_format=torch.channels_last))
                return pixels.clamp(0, 1).mul(255).to(torch.uint8).cpu()

            row |= timing_entries(context.interleave({"images": images}, share=0.2), "images")
            row["images_per_second"] = per_second(batch, row["seconds"])
