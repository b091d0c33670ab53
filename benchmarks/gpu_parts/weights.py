"""Random weights on the spot: the plain networks, and the same as an engine folder, stored in fp16."""

from __future__ import annotations

import datetime as dt
import functools
import platform
from pathlib import Path

import torch
from gpu_parts.context import Context
from make_checkpoint import random_weight
from safetensors.torch import load_file, save_file
from torch import Tensor

from featinv_fast.backends import Request, Session, load
from featinv_fast.checkpoints.architecture import model_shapes
from featinv_fast.config import Precision, SamplingConfig
from featinv_fast.engine import EngineFolder, Manifest, open_engine, staging
from featinv_fast.engine.manifest import PromptInfo, SourceInfo
from featinv_fast.models import FeatInv
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes

SEED = 0
STORED = Precision.FP16
ENGINE, PLAIN = "random.engine", "plain.safetensors"
LARGEST_BATCH = 64


def run(context: Context) -> None:
    """Make the weights, write them in both forms."""
    with context.measured("random weights") as row:
        config = context.sizes.model
        generator = torch.Generator().manual_seed(SEED)
        tensors = {name: random_weight(name, shape, generator).half() for name, shape in model_shapes(config).items()}
        shape = (2, config.context_tokens, config.context_channels)
        tensors["prompts"] = torch.randn(shape, generator=generator).half()
        save_file(tensors, context.work / PLAIN)
        row["parameters"] = sum(tensor.numel() for name, tensor in tensors.items() if name != "prompts")
        # In fp32 on the device: what the rewrites compute from weights is rounded once, to how it is stored.
        model, prompts = plain_model(context, torch.float32)
        rewritten = EngineModel(model, prompts)
        dtypes = storage_dtypes(rewritten, STORED)
        stored = {n: t.to("cpu", dtypes[n]).contiguous() for n, t in rewritten.state_dict().items()}
        with staging(context.work / ENGINE) as stage:
            save_file(stored, stage.path / "weights.safetensors")
            stage.finish(_manifest(context, rewritten.time_embedding.size))
        open_engine(context.work / ENGINE)


def _manifest(context: Context, time_bias_size: int) -> Manifest:
    return Manifest(
        name="random weights",
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        model=context.sizes.model,
        features=context.sizes.features,
        sampling=SamplingConfig(),
        precision=STORED,
        prompts=PromptInfo(source=f"random, seed {SEED}"),
        time_bias_size=time_bias_size,
        max_batch=LARGEST_BATCH,
        source=SourceInfo(file_name="none", sha256="0" * 64, layout="none"),
        tools={"python": platform.python_version()},
    )


def engine(context: Context) -> EngineFolder:
    """The engine folder, whose bytes are hashed once in a part."""
    return _opened(context.work / ENGINE)


@functools.cache
def _opened(path: Path) -> EngineFolder:
    return open_engine(path)


def session(context: Context, folder: EngineFolder, precision: Precision) -> Session:
    """The engine on our torch backend."""
    return load(Request(engine=folder, device=context.device, precision=precision), "torch")


def plain_tensors(context: Context) -> dict[str, Tensor]:
    """The plain networks' tensors under our names and, as "prompts", the two embeddings [2, T, D]; fp16 on the CPU."""
    return load_file(context.work / PLAIN)


def plain_model(context: Context, dtype: torch.dtype) -> tuple[FeatInv, Tensor]:
    """The plain networks on the device, and the prompts [2, T, D].

    Time embeddings stay in fp32 or better, as in an engine: in bf16, time 981 would be 980.
    """
    tensors = plain_tensors(context)
    prompts = tensors.pop("prompts")
    with torch.device("meta"):
        model = FeatInv(context.sizes.model)
    precise = torch.promote_types(dtype, torch.float32)
    model.load_state_dict(
        {name: tensor.to(context.device, precise if _of_time(name) else dtype) for name, tensor in tensors.items()},
        assign=True,
    )
    return model.eval().requires_grad_(requires_grad=False), prompts.to(context.device, dtype)


def _of_time(name: str) -> bool:
    return "time_embedding" in name or "time_projection" in name


def inputs(context: Context, batch: int) -> tuple[Tensor, Tensor]:
    """Start noise [B, 4, h, w] and feature maps [B, C, H, W] on the device, fp32, the same for every batch size."""
    config, spec = context.sizes.model, context.sizes.features

    def rows(seed: int, *shape: int) -> Tensor:
        generators = (torch.Generator().manual_seed(seed + row) for row in range(batch))
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(context.device)

    size = config.latent_size
    return rows(0, config.latent_channels, size, size), rows(1000, config.feature_channels, spec.height, spec.width)
