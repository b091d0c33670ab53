"""Reading the folders that diffusers writes, one component or all of them."""

from __future__ import annotations

import re
from pathlib import Path

from featinv_fast.checkpoints.known import resemblance
from featinv_fast.checkpoints.reader import Raw, read_file, read_json
from featinv_fast.errors import CheckpointError, CheckpointMismatchError

COMPONENTS = ("unet", "controlnet", "vae", "text_encoder", "condition_encoder")
REQUIRED = ("unet", "controlnet", "vae", "condition_encoder")
# In the order of preference: the formats that cannot hold code come first.
WEIGHTS = tuple(
    stem + suffix
    for suffix in (".safetensors", ".safetensors.index.json", ".bin")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
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
            given=f"{path} with {', '.join(sorted(entry.name for entry in path.iterdir())[:20]) or 'nothing in it'}",
            expected=f"a folder with {', '.join(REQUIRED)}; missing: {', '.join(missing)}",
            remedy="give a checkpoint file, or a folder that `featinv convert --to diffusers` wrote",
        )
    parts = {name: read_component(path / name, name) for name in present}
    scheduler = path / "scheduler" / "scheduler_config.json"
    configs = {name: part.configs[name] for name, part in parts.items()}
    return Raw(
        {name: tensor for part in parts.values() for name, tensor in part.tensors.items()},
        parts["condition_encoder"].metadata,
        configs | ({"scheduler": read_json(scheduler)} if scheduler.is_file() else {}),
    )


def read_component(path: Path, component: str) -> Raw:
    """Read one component's folder: its weights, with `component` as prefix, and its `config.json`.

    Raises:
        CheckpointError: there is no file of weights.
    """
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise CheckpointError(
            f"no weights of the component '{component}'",
            given=f"{path} with {', '.join(sorted(entry.name for entry in path.iterdir())[:20]) or 'nothing in it'}",
            expected=f"one of {', '.join(WEIGHTS)}",
            remedy="copy the folder again, with the files of full precision",
        )
    raw = read_file(weights)
    config = path / "config.json"
    return Raw(
        {_prefixed(component, name): tensor for name, tensor in raw.tensors.items()},
        raw.metadata,
        {component: read_json(config) if config.is_file() else {}},
    )


def _prefixed(component: str, name: str) -> str:
    for pattern, replacement in OLDER_NAMES.get(component, ()):
        name = re.sub(f"^{pattern}$", replacement, name)
    return name if name.startswith("featinv.") else f"{component}.{name}"
