"""Reading the folders that diffusers writes, one component or all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from featinv_fast.checkpoints.known import resemblance
from featinv_fast.checkpoints.listing import listed
from featinv_fast.checkpoints.reader import SCHEDULER, Raw, read_file, read_json
from featinv_fast.checkpoints.wrappers import renamed, unwrapped
from featinv_fast.errors import CheckpointError, CheckpointMismatchError

COMPONENTS = ("unet", "controlnet", "vae", "text_encoder", "condition_encoder")
REQUIRED = ("unet", "controlnet", "vae", "condition_encoder")
STEMS = "diffusion_pytorch_model|model|pytorch_model"
# In the order of preference: the formats that cannot hold code come first. A variant is what the weights are stored
# as or which of them they are, "fp16" or "non_ema".
WEIGHTS = (
    rf"({STEMS})(?:\.(?P<variant>\w+))?\.safetensors",
    rf"({STEMS})\.safetensors\.index(?:\.(?P<variant>\w+))?\.json",
    rf"({STEMS})\.(?P<variant>\w+)\.safetensors\.index\.json",
    rf"({STEMS})(?:\.(?P<variant>\w+))?\.bin",
    rf"({STEMS})\.bin\.index(?:\.(?P<variant>\w+))?\.json",
    rf"({STEMS})\.(?P<variant>\w+)\.bin\.index\.json",
)
# Names that older versions of diffusers (VAE attention) and transformers (prefix) gave to the same tensors.
OLDER_NAMES = {
    "vae": (
        (r"(.*\.mid_block\.attentions\.0\.)query(\..*)", r"\1to_q\2"),
        (r"(.*\.mid_block\.attentions\.0\.)key(\..*)", r"\1to_k\2"),
        (r"(.*\.mid_block\.attentions\.0\.)value(\..*)", r"\1to_v\2"),
        (r"(.*\.mid_block\.attentions\.0\.)proj_attn(\..*)", r"\1to_out.0\2"),
    ),
    "text_encoder": ((r"text_model\.(.*)", r"\1"),),
}


def read_folder(path: Path) -> Raw:
    """Read a folder of components. Tensor names get their component's prefix, but for `featinv.*`.

    Raises:
        CheckpointMismatchError: components of a FeatInv checkpoint are missing.
    """
    present = [name for name in COMPONENTS if (path / name).is_dir()]
    missing = [name for name in REQUIRED if name not in present]
    if missing and (path / "manifest.json").is_file():
        raise CheckpointMismatchError(
            "this folder is an engine and not a checkpoint",
            given=path,
            expected=f"the checkpoint it was made of, or a folder with {', '.join(REQUIRED)}",
            remedy="name the checkpoint; for what can be done with an engine see --refit, --verify and --from-onnx of "
            "`featinv-export`",
        )
    if missing:
        raise CheckpointMismatchError(
            f"this folder is not a FeatInv checkpoint but {resemblance(f'{name}.' for name in present)}",
            given=f"{path} with {listed(entries(path)) or 'nothing in it'}",
            expected=f"a folder with {', '.join(REQUIRED)}; missing: {', '.join(missing)}",
            remedy="give a checkpoint file, or a folder that `featinv convert --to diffusers` wrote",
        )
    parts = {name: read_component(path / name, name) for name in present}
    configs = {name: config for part in parts.values() for name, config in part.configs.items()}
    return Raw(
        {name: tensor for part in parts.values() for name, tensor in part.tensors.items()},
        parts["condition_encoder"].metadata,
        configs | read_scheduler(path),
    )


def read_component(path: Path, component: str) -> Raw:
    """Read one component's folder: its weights, with `component` as prefix, and its `config.json`.

    Raises:
        CheckpointError: there is no file of weights.
    """
    raw = read_file(_weights(path, component))
    config = path / "config.json"
    return Raw(
        renamed(
            tensors := unwrapped(raw.tensors),
            {name: _prefixed(component, name) for name in tensors},
        ),
        raw.metadata,
        raw.configs | {component: read_json(config) if config.is_file() else {}},
    )


def read_scheduler(path: Path) -> dict[str, dict[str, Any]]:
    """The scheduler's configuration in the folder of a pipeline, under "scheduler"; empty if there is none."""
    scheduler = path / "scheduler" / "scheduler_config.json"
    return {SCHEDULER: read_json(scheduler)} if scheduler.is_file() else {}


def _weights(path: Path, component: str) -> Path:
    """The file of a component's weights: the one of no variant, or the only variant."""
    names = entries(path)
    matches = [match for pattern in WEIGHTS for name in names if (match := re.fullmatch(pattern, name))]
    variants = {match.groupdict().get("variant") for match in matches}
    if len(variants) > 1 and None not in variants:
        raise CheckpointError(
            f"several variants of the component '{component}'",
            given=f"{path} with {listed(match[0] for match in matches)}",
            expected="the weights in full precision, or one variant",
            remedy="move away the variants that are not to be used",
        )
    chosen = None if None in variants else next(iter(variants), None)
    weights = next((match[0] for match in matches if match.groupdict().get("variant") == chosen), None)
    if weights is None:
        raise CheckpointError(
            f"no weights of the component '{component}'",
            given=f"{path} with {listed(names) or 'nothing in it'}",
            expected="model.safetensors or diffusion_pytorch_model.safetensors, also of a variant (.fp16.safetensors), "
            "with the index of shards, or as .bin",
            remedy="copy the folder again, with its weights",
        )
    return path / weights


def entries(path: Path) -> list[str]:
    """The names in a folder, in order.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"the folder cannot be read: {error.strerror or error}",
            given=path,
            expected="a readable folder",
            remedy="check the path and its permissions",
        ) from error


def _prefixed(component: str, name: str) -> str:
    for pattern, replacement in OLDER_NAMES.get(component, ()):
        name = re.sub(f"^{pattern}$", replacement, name)
    return name if name.startswith("featinv.") else f"{component}.{name}"
