"""What an engine is made from: the checkpoint, what is fused into it, and what the options say that it does not."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from featinv_export.options import ExportOptions
from featinv_fast import samplers
from featinv_fast.checkpoints import Checkpoint, fuse_lora, load, replace_unet
from featinv_fast.checkpoints.reader import is_index, shard_files
from featinv_fast.config import FeatureSpec, SamplingConfig
from featinv_fast.engine import PromptInfo, SourceInfo
from featinv_fast.engine.files import hash_files
from featinv_fast.errors import ArgumentError, TextError
from featinv_fast.features import completed, named_spec, official, open_backbone
from featinv_fast.models import FeatInv
from featinv_fast.text import EMPTY_PROMPT, OFFICIAL_PROMPT, encode_prompt

# Few enough steps for a latent consistency model to be worth its name (arXiv 2310.04378, sec. 5).
LCM_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The two prompts of an engine: embeddings [2, T, D] in fp32, the prompt first, and where they came from."""

    embeddings: Tensor
    info: PromptInfo


def read_checkpoint(options: ExportOptions) -> Checkpoint:
    """The checkpoint with its adaptations and with the feature spec and sampler defaults that the options complete.

    Raises:
        CheckpointError: a file cannot be read or does not fit.
        ArgumentError: options that contradict the checkpoint.
    """
    checkpoint = load(options.checkpoint)
    if options.lcm_unet is not None:
        checkpoint = replace_unet(checkpoint, options.lcm_unet)
        sampling = dataclasses.replace(checkpoint.sampling, sampler="lcm", steps=LCM_STEPS)
        checkpoint = dataclasses.replace(checkpoint, sampling=sampling)
    if options.lora is not None:
        checkpoint = fuse_lora(checkpoint, options.lora, scale=options.lora_scale, alpha=options.lora_alpha)
    return dataclasses.replace(
        checkpoint,
        features=feature_spec(checkpoint.features, options),
        sampling=sampling_config(checkpoint.sampling, options),
    )


def plain_model(checkpoint: Checkpoint) -> FeatInv:
    """The checkpoint as plain networks in fp32. Weights stored in fp32 stay where they are, in the mapped file."""
    with torch.device("meta"):
        model = FeatInv(checkpoint.config)
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors.items()}, assign=True)
    return model.eval().requires_grad_(requires_grad=False)


def feature_spec(stated: FeatureSpec, options: ExportOptions) -> FeatureSpec:
    """The checkpoint's feature spec, completed by the options and, where nobody knows, by opening the backbone.

    Raises:
        ArgumentError: an unknown backbone, or an option that contradicts what the checkpoint says.
        FeatInvError: the backbone cannot be opened, or gives other maps than the checkpoint takes.
    """
    spec = stated
    if options.names_backbone:
        spec = named_spec(
            stated, backbone=options.backbone, layer=options.layer, image_size=options.image_size, owner="checkpoint"
        )
    if options.feature_size is not None:
        height, width = options.feature_size
        spec = completed(spec, {"height": height, "width": width}, owner="checkpoint")
    # Of the official backbones all is known; others are looked at, and so are weights.
    unknown = None in (spec.height, spec.width, spec.layout) and official(spec) is None
    if options.backbone_weights is not None or (options.names_backbone and unknown):
        opened = open_backbone(spec, backbone=options.backbone, weights=options.backbone_weights)
        spec = completed(spec, vars(opened.spec), owner="checkpoint")
    return spec


def sampling_config(stated: SamplingConfig, options: ExportOptions) -> SamplingConfig:
    """The checkpoint's sampler defaults, overridden by the options.

    Raises:
        ArgumentError: no such sampler, or one that cannot take so many steps.
    """
    config = dataclasses.replace(
        stated,
        sampler=stated.sampler if options.sampler is None else options.sampler,
        steps=stated.steps if options.steps is None else options.steps,
        guidance_scale=stated.guidance_scale if options.guidance_scale is None else options.guidance_scale,
    )
    samplers.build(config.sampler, config.steps)
    return config


def embed_prompts(checkpoint: Checkpoint, options: ExportOptions) -> Prompts:
    """The prompts that the options name, that the checkpoint stores, or the official ones, in this order.

    Raises:
        TextError: a prompt needs a text encoder or a tokenizer that is not there.
        ArgumentError: a tokenizer was given, but there is no prompt to embed.
    """
    cond, cond_text = _embed(checkpoint, options, "cond", options.prompt, OFFICIAL_PROMPT)
    uncond, uncond_text = _embed(checkpoint, options, "uncond", options.negative_prompt, EMPTY_PROMPT)
    sources = {"checkpoint" if text is None else "text encoder" for text in (cond_text, uncond_text)}
    if options.tokenizer is not None and "text encoder" not in sources:
        raise ArgumentError(
            "the tokenizer would not be used",
            given=options.tokenizer,
            expected="a prompt: the checkpoint stores embeddings, which need none",
            remedy="pass --prompt TEXT as well, or leave out --tokenizer",
        )
    info = PromptInfo(cond=cond_text, uncond=uncond_text, source=" and ".join(sorted(sources)))
    return Prompts(torch.cat([cond, uncond]), info)


def _embed(
    checkpoint: Checkpoint, options: ExportOptions, branch: str, wanted: str | None, official: str
) -> tuple[Tensor, str | None]:
    """The embedding [1, T, D] of a branch's prompt, and its text unless only the embedding is known."""
    stored = checkpoint.prompts[branch]
    if wanted is None and stored is not None:
        return stored.float(), None
    text = official if wanted is None else wanted
    if not checkpoint.text_encoder:
        raise TextError(
            "the checkpoint has no text encoder to embed a prompt with",
            given=repr(text),
            expected="stored prompts alone" if stored is not None else "a text encoder, or stored prompts",
            remedy="leave the prompt out" if stored is not None else "add a text encoder to the checkpoint",
        )
    return encode_prompt(text, checkpoint.text_encoder, tokenizer=options.tokenizer), text


def source_info(checkpoint: Checkpoint) -> SourceInfo:
    """Name and hash of the checkpoint; the hash of several files is that of their list as `sha256sum` prints it."""
    path = checkpoint.path.resolve() if checkpoint.path.is_dir() else checkpoint.path
    folder = path if path.is_dir() else path.parent
    hashes = {name: info.sha256 for name, info in hash_files(folder, _file_names(path)).items()}
    listing = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    digest = hashes[path.name] if len(hashes) == 1 else hashlib.sha256(listing.encode()).hexdigest()
    return SourceInfo(file_name=path.name, sha256=digest, layout=checkpoint.layout)


def _file_names(path: Path) -> list[str]:
    """The files of a checkpoint, relative to its folder."""
    if path.is_dir():
        return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    if is_index(path):
        return sorted({path.name, *shard_files(path)})
    return [path.name]
