"""Models put together for training, and taken apart for saving."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from featinv_fast.checkpoints import BaseModel, Checkpoint
from featinv_fast.checkpoints.reader import read_file
from featinv_fast.checkpoints.writer import replacing, write_safetensors
from featinv_fast.config import AutoencoderConfig, FeatureSpec, ModelConfig, from_dict, to_dict
from featinv_fast.errors import CheckpointMismatchError, ConfigError
from featinv_fast.models import Autoencoder, ConditionEncoder, FeatInv
from featinv_fast.text import EMPTY_PROMPT, TRAINING_PROMPT, encode_prompt
from featinv_fast.train import randomness

logger = logging.getLogger(__name__)

FIRST_CONVOLUTION = "condition_encoder.conv_in."  # the only weights whose shapes follow from the features
UNET, CONTROLNET, AUTOENCODER = "denoiser.unet.", "denoiser.controlnet.", "autoencoder."
AUTOENCODER_KEY = "featinv.autoencoder"


@contextlib.contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Modules built in this block get weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derived_seed(seed, "weights"))
        yield


def freeze(module: nn.Module) -> None:
    """Let nothing in `module` learn."""
    module.eval().requires_grad_(requires_grad=False)


def featinv_from_base(base: BaseModel, config: ModelConfig, *, seed: int) -> FeatInv:
    """A FeatInv model at the start of its training, in fp32: all frozen but the ControlNet and the condition encoder.

    The ControlNet starts as the base's encoder, its time embedding included, with outputs of zero (arXiv 2302.05543,
    sec. 3.1); the condition encoder is new.
    """
    with torch.device("meta"):
        model = FeatInv(config)
    with fresh_weights(seed):
        condition_encoder = ConditionEncoder(config)
    tensors = {name: tensor.float() for name, tensor in base.tensors.items()}
    tensors |= {f"condition_encoder.{name}": tensor for name, tensor in condition_encoder.state_dict().items()}
    for name, parameter in model.denoiser.controlnet.named_parameters():
        source = tensors.get(UNET + name)  # the same names: time embedding and encoder
        tensors[CONTROLNET + name] = torch.zeros(parameter.shape) if source is None else source.clone()
    model.load_state_dict(tensors, strict=True, assign=True)
    freeze(model)
    model.condition_encoder.requires_grad_()
    model.denoiser.controlnet.requires_grad_()
    return model


def learn_on(model: FeatInv, started: Checkpoint, features: FeatureSpec) -> tuple[str, ...]:
    """Give a model what another training has learned: the ControlNet and the condition encoder.

    The other one may have been on another backbone or layer. Where its maps have another number of channels, the first
    convolution of the condition encoder stays as it is: new.

    Args:
        model: at the start of its training.
        started: what was trained.
        features: what the model takes.

    Returns:
        Remarks: what was taken from another backbone or layer, in words.

    Raises:
        ConfigError: the checkpoint has another architecture, or another base.
    """
    expected = model.state_dict()
    given = {name: tensor.float() for name, tensor in started.tensors.items()}
    new = started.config.feature_channels != model.config.feature_channels
    if new:
        given |= {name: expected[name] for name in expected if name.startswith(FIRST_CONVOLUTION)}
    differing = [
        name
        for name in sorted(expected.keys() | given.keys())
        if name not in expected or name not in given or expected[name].shape != given[name].shape
    ]
    if not differing:
        frozen = [name for name in expected if name.startswith((UNET, AUTOENCODER))]
        differing = [name for name in frozen if not torch.equal(expected[name], given[name])]
    if differing:
        raise ConfigError(
            "the training cannot start from this checkpoint",
            given=f"{started.path}, {differing[0]} and {len(differing) - 1} more tensors differ",
            expected="a FeatInv model of the same architecture, on the same base, of whatever features",
            remedy="correct the recipe's start, base or condition_hidden_channels",
        )
    model.load_state_dict(given)
    one, other = (
        "an unnamed backbone" if spec.backbone is None else f"{spec.backbone}, layer {spec.layer_names}"
        for spec in (started.features, features)
    )
    if one == other and not new:
        return ()
    remark = f"started from a model of the features of {one}, of {started.config.feature_channels} channels"
    remark += ": the first convolution of the condition encoder was new" if new else ""
    logger.warning("the model of the features of %s is %s", other, remark)
    return (remark,)


def plain_model(checkpoint: Checkpoint) -> FeatInv:
    """A checkpoint as plain networks in fp32, frozen."""
    with torch.device("meta"):
        model = FeatInv(checkpoint.config)
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors.items()}, assign=True)
    freeze(model)
    return model


def base_prompts(base: BaseModel, prompt: str | None, tokenizer: Path | None) -> dict[str, Tensor]:
    """The embeddings "cond" and "uncond" [1, T, D] to train with: the ones the base stores, or its text encoder's.

    Raises:
        ConfigError: the base has neither, a prompt is named and there is no text encoder, or a tokenizer is named and
            the prompts are stored.
        TextError: the prompt needs a tokenizer.
    """
    stored = {name: value.float() for name, value in base.prompts.items() if value is not None}
    if prompt is None and len(stored) == 2:
        if tokenizer is not None:
            raise ConfigError(
                "the tokenizer has no effect: the base stores its prompts",
                given=tokenizer,
                expected="no tokenizer, or a prompt of your own",
                remedy="leave out tokenizer, or name a prompt",
            )
        return stored
    if not base.text_encoder:
        raise ConfigError(
            "the base model has no text encoder to embed the prompt with",
            given=f"{base.path}, prompt {prompt!r}",
            expected="a base with its text encoder, or one that stores both prompts",
            remedy="give the whole Stable-Diffusion checkpoint, or leave out `prompt`",
        )
    return {
        "cond": encode_prompt(TRAINING_PROMPT if prompt is None else prompt, base.text_encoder, tokenizer=tokenizer),
        "uncond": encode_prompt(EMPTY_PROMPT, base.text_encoder, tokenizer=tokenizer),
    }


def constant_prompts(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Prompts of a model without a text encoder: fixed random numbers, and zeros for the empty prompt; [1, T, D]."""
    shape = (1, config.context_tokens, config.context_channels)
    return {"cond": torch.randn(shape, generator=randomness.generator(seed, "prompt")), "uncond": torch.zeros(shape)}


def save_autoencoder(path: Path, autoencoder: Autoencoder, config: AutoencoderConfig, notes: Mapping[str, str]) -> None:
    """Write a trained autoencoder alone, replacing an older one, with `notes` in the metadata."""
    tensors = {AUTOENCODER + name: tensor for name, tensor in autoencoder.state_dict().items()}
    with replacing(path, force=True, replaceable=lambda path: path.suffix == ".safetensors") as temporary:
        write_safetensors(temporary, tensors, {"format": "pt", AUTOENCODER_KEY: json.dumps(to_dict(config)), **notes})


def load_autoencoder(path: Path) -> tuple[Autoencoder, AutoencoderConfig]:
    """Read what `save_autoencoder` wrote; frozen.

    Raises:
        CheckpointError: the file cannot be read.
        CheckpointMismatchError: it holds something else.
    """
    raw = read_file(path)
    if AUTOENCODER_KEY not in raw.metadata:
        raise CheckpointMismatchError(
            "this is no autoencoder that the autoencoder recipe made",
            given=path,
            expected=f"'{AUTOENCODER_KEY}' in its metadata",
            remedy="name the file that `featinv train` made of a recipe 'autoencoder'",
        )
    config = from_dict(AutoencoderConfig, json.loads(raw.metadata[AUTOENCODER_KEY]))
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    try:
        tensors = {name.removeprefix(AUTOENCODER): tensor.float() for name, tensor in raw.tensors.items()}
        autoencoder.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointMismatchError(
            "the autoencoder's tensors do not fit its metadata",
            given=str(error),
            expected="the tensors that its metadata describe",
            remedy="train or copy it again",
        ) from error
    freeze(autoencoder)
    return autoencoder, config


def with_autoencoder(config: ModelConfig, autoencoder: AutoencoderConfig, image_size: int) -> ModelConfig:
    """`config` with a trained autoencoder and the latent size that follows from it."""
    factor = 2 ** (len(autoencoder.channel_multipliers) - 1)
    config = dataclasses.replace(config, autoencoder=autoencoder)
    if config.latent_size * factor != image_size or config.latent_channels != autoencoder.latent_channels:
        raise ConfigError(
            "the model does not fit its autoencoder",
            given=f"latents of {config.latent_channels}x{config.latent_size}x{config.latent_size}",
            expected=f"{autoencoder.latent_channels}x{image_size // factor}x{image_size // factor}, as the autoencoder "
            f"makes of images of {image_size} pixels",
            remedy="correct model.latent_size and model.latent_channels",
        )
    return config
