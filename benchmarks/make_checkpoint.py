"""Makes a checkpoint with random weights in the official layout: 1.31 G parameters, 5 GB.

    python benchmarks/make_checkpoint.py --out random.safetensors [--features maps.npy] [--small] [--seed 0]

The weights keep activations at unit size, and the convolutions that training starts at zero are not zero, so that
every part of the model takes part in the result. The prompts' embeddings are random too and stored in the file.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featinv_fast.checkpoints import Checkpoint
from featinv_fast.checkpoints.architecture import model_shapes
from featinv_fast.checkpoints.saving import save
from featinv_fast.config import AutoencoderConfig, FeatureSpec, ModelConfig, SamplingConfig

MAPS = 4
# Every kind of block, the official sizes of latents and images, and little else: it exports in seconds.
SMALL = ModelConfig(
    channels=32,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    attention_levels=(0,),
    context_channels=24,
    feature_channels=48,
    condition_hidden_channels=16,
    autoencoder=AutoencoderConfig(channels=32, channel_multipliers=(1, 1, 2, 2), blocks_per_level=1),
)
SMALL_FEATURES = FeatureSpec(channels=SMALL.feature_channels, height=9, width=9)
CONVNEXT = FeatureSpec(
    channels=1024,
    height=9,
    width=9,
    backbone="convnext_base.fb_in22k_ft_in1k",
    layer="final",
    input_size=288,
)


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Matrices of unit gain, norm scales around 1, small biases."""
    values = torch.empty(shape).uniform_(-1.0, 1.0, generator=generator)
    if len(shape) > 1:
        return values.mul_(math.sqrt(3.0 / math.prod(shape[1:])))
    return values.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)


def make_checkpoint(out: Path, config: ModelConfig, features: FeatureSpec, seed: int) -> int:
    """Write a checkpoint to `out`, over what is there; the number of its parameters is returned."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_weight(name, shape, generator) for name, shape in model_shapes(config).items()}
    prompt_shape = (1, config.context_tokens, config.context_channels)
    checkpoint = Checkpoint(
        config=config,
        tensors=tensors,
        prompts={name: torch.randn(prompt_shape, generator=generator) for name in ("cond", "uncond")},
        text_encoder={},
        features=features,
        sampling=SamplingConfig(),
        metadata={"featinv.info.weights": f"random, seed {seed}"},
        adaptations=(),
        layout="ldm",
        path=out,
    )
    save(checkpoint, out, "ldm", force=True)
    return sum(tensor.numel() for tensor in tensors.values())


def make_features(out: Path, features: FeatureSpec, seed: int) -> None:
    """Write `MAPS` random feature maps, [MAPS, C, H, W]."""
    shape = (MAPS, features.channels, features.height, features.width)
    np.save(out, np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def main() -> None:
    """Parse the command line, make the checkpoint and the feature maps."""
    parser = argparse.ArgumentParser(description="Make a checkpoint with random weights in the official layout.")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--features", type=Path, help=f"a .npy file to write {MAPS} random feature maps to")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmarks with")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config, features = (SMALL, SMALL_FEATURES) if arguments.small else (ModelConfig(), CONVNEXT)
    parameters = make_checkpoint(arguments.out, config, features, arguments.seed)
    if arguments.features is not None:
        make_features(arguments.features, features, arguments.seed)
    print(f"{arguments.out}: {parameters / 1e6:,.1f} M parameters, {arguments.out.stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
