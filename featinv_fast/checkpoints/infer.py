"""The architecture of a checkpoint, read from the shapes of a few of its tensors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from featinv_fast.checkpoints.architecture import Shape, Shapes
from featinv_fast.checkpoints.recipe import Layout
from featinv_fast.config import AutoencoderConfig, ModelConfig
from featinv_fast.errors import CheckpointMismatchError, ConfigError

GROUPS = 32  # of every GroupNorm: widths are its multiples
ENCODER = "denoiser.unet.encoder"
CONV_IN = f"{ENCODER}.conv_in.weight"
CONTEXT = f"{ENCODER}.middle.block_in.transformer.cross_attention.context.key.weight"
FEATURES = "condition_encoder.conv_in.weight"
IMAGE = "autoencoder.encoder.conv_in.weight"
LATENT = "autoencoder.decoder.post_quant_conv.weight"
REQUIRED = (CONV_IN, CONTEXT, FEATURES, IMAGE, LATENT)
GUIDANCE = "denoiser.unet.time_embedding.guidance_projection.weight"


def infer_config(layout: Layout, shapes: Shapes) -> ModelConfig:
    """The configuration that a checkpoint of `layout` with these tensor shapes belongs to.

    What shapes cannot tell (heads, latent size, prompt length, latent scale) keeps the official values.

    Raises:
        CheckpointMismatchError: a tensor that tells the architecture is missing or fits no architecture of this family.
    """
    landmarks = layout.landmarks(shapes)
    missing = [name for name in REQUIRED if name not in landmarks]
    if missing:
        # These names do not depend on the architecture, so that of the default one will do.
        names = layout.modules(ModelConfig())
        raise _unfit(
            f"{len(missing)} of the tensors that tell it are missing",
            f"{len(shapes)} tensors; missing: {', '.join(layout.source_name(names, name) for name in missing)}",
            f"a complete checkpoint in the layout '{layout.name}'",
        )
    channels, latent_channels = _shape(landmarks, CONV_IN, 4)[:2]
    multipliers, blocks = _levels(landmarks, ENCODER, "residual.conv_in", channels)
    hidden, feature_channels = _shape(landmarks, FEATURES, 4)[:2]
    with as_mismatch():
        return ModelConfig(
            latent_channels=latent_channels,
            channels=channels,
            channel_multipliers=multipliers,
            blocks_per_level=blocks,
            attention_levels=_attention_levels(landmarks),
            context_channels=_shape(landmarks, CONTEXT, 2)[1],
            feature_channels=feature_channels,
            condition_hidden_channels=hidden,
            guidance_embedding_channels=_shape(landmarks, GUIDANCE, 2)[1] if GUIDANCE in landmarks else 0,
            autoencoder=_autoencoder(landmarks),
        )


@contextlib.contextmanager
def as_mismatch() -> Iterator[None]:
    """Numbers of a checkpoint that no model has are the checkpoint's fault.

    Raises:
        CheckpointMismatchError: in place of a ConfigError.
    """
    try:
        yield
    except ConfigError as error:
        raise _unfit(error.problem, error.given, error.expected) from error


def _autoencoder(landmarks: Shapes) -> AutoencoderConfig:
    channels, image_channels = _shape(landmarks, IMAGE, 4)[:2]
    multipliers, blocks = _levels(landmarks, "autoencoder.encoder", "conv_in", channels)
    return AutoencoderConfig(
        channels=channels,
        channel_multipliers=multipliers,
        blocks_per_level=blocks,
        image_channels=image_channels,
        latent_channels=_shape(landmarks, LATENT, 4)[0],
    )


def _levels(landmarks: Shapes, parent: str, leaf: str, channels: int) -> tuple[tuple[int, ...], int]:
    """Channel multiplier of each level, and the number of blocks in the first one."""
    if channels % GROUPS:
        raise _unfit(f"the width of {parent} is not a multiple of {GROUPS}", channels, f"a multiple of {GROUPS}")
    pattern = re.compile(rf"{re.escape(parent)}\.levels\.(\d+)\.blocks\.(\d+)\.{re.escape(leaf)}\.weight")
    widths = {
        (int(match[1]), int(match[2])): shape[0] for name, shape in landmarks.items() if (match := pattern.match(name))
    }
    levels = sorted({level for level, _ in widths})
    firsts = [widths.get((level, 0), 0) for level in levels]
    if not levels or levels != list(range(len(levels))) or any(width % channels or not width for width in firsts):
        raise _unfit(
            f"the levels of {parent} cannot be told",
            {f"level {level}, block {block}": width for (level, block), width in sorted(widths.items())},
            f"levels 0, 1, ... with blocks 0, 1, ... whose widths are multiples of {channels}",
        )
    return tuple(width // channels for width in firsts), sum(level == 0 for level, _ in widths)


def _attention_levels(landmarks: Shapes) -> tuple[int, ...]:
    pattern = re.compile(rf"{re.escape(ENCODER)}\.levels\.(\d+)\.blocks\.0\.transformer\.proj_in\.weight")
    return tuple(sorted(int(match[1]) for name in landmarks if (match := pattern.fullmatch(name))))


def _shape(landmarks: Shapes, name: str, rank: int) -> Shape:
    if len(landmarks[name]) != rank:
        raise _unfit(f"the tensor that would be our {name} has another rank", landmarks[name], f"rank {rank}")
    return landmarks[name]


def _unfit(problem: str, given: object, expected: object) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"the architecture cannot be read from the tensors: {problem}",
        given=given,
        expected=expected,
        remedy="check that the file is complete, and that it is the one that was meant",
    )
