"""timm models by name, with weights from the hub, a file or chance, and for images of any size that they can take."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
    MissingPackageError,
)
from featinv_fast.features import small_backbones


def create_model(name: str, weights: str | Path | None, size: int) -> Any:
    """A timm model on the CPU.

    Args:
        name: see `known_name`.
        weights: see `Backbone`.
        size: edge in pixels of its images; a model that is made for one size is made for this one, with its tables of
            positions interpolated as timm does.

    Raises:
        MissingPackageError: timm is not installed.
        ArgumentError: it cannot be made for this size, or the seed is bad.
        CheckpointError: the weights cannot be obtained, read or fitted.
    """
    timm = require_timm()
    require_size(name, size)
    if weights is None:
        return _from_hub(timm, name, size)
    if str(weights).startswith("random:"):
        return _from_chance(timm, name, size, str(weights).removeprefix("random:"))
    return _from_file(timm, name, size, Path(weights))


def require_timm() -> Any:
    """timm, with our own models among its own.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            "computing features needs timm", remedy="pip install 'featinv-fast[timm]', or pass feature maps"
        ) from error
    small_backbones.register()
    return timm


def new_model(name: str, size: int, **options: Any) -> Any:
    """A timm model for images of `size` pixels with new weights, to be trained; `options` are timm's.

    Raises:
        MissingPackageError, ArgumentError: see `create_model`.
    """
    require_size(known_name(name), size)
    return _sized(require_timm(), name, size, pretrained=False, **options)


def require_size(name: str, size: int) -> None:
    """Refuse a size of images that the model cannot take, before any weights are fetched.

    Raises:
        ArgumentError: it names sizes that the model can take.
    """
    timm = require_timm()
    own = timm.get_pretrained_cfg(name).input_size[-1]
    # A model that cannot be tried so at its own size is left to its first real image.
    if size != own and (error := _trial(timm, name, size)) and _trial(timm, name, own) is None:
        raise impossible_size(name, size, error)


def known_name(name: object) -> str:
    """`name`, which timm knows as a model.

    Raises:
        MissingPackageError: timm is not installed.
        ArgumentError: there is no such model.
    """
    if not isinstance(name, str) or not require_timm().is_model(name):
        raise ArgumentError(
            "unknown backbone", given=name, expected="the name of a timm model", remedy="see timm.list_models()"
        )
    return name


def evaluation_size(name: str) -> int:
    """Edge in pixels of the images that timm evaluates a model with."""
    config = require_timm().get_pretrained_cfg(name)
    size: int = (config.test_input_size or config.input_size)[-1]
    return size


def impossible_size(name: str, size: int, error: Exception) -> ArgumentError:
    """The refusal of images of `size` pixels, on which the model failed with `error`: names sizes that it can take."""
    timm = require_timm()
    possible = [edge for edge in _candidates(timm, name, size) if _trial(timm, name, edge) is None]
    reason = str(error).strip() or type(error).__name__
    return ArgumentError(
        f"the backbone {name} cannot take images of this size",
        given=f"{size} pixels: {reason.splitlines()[0]}",
        expected=f"{' or '.join(map(str, possible))} pixels" if possible else "the size that the model was made for",
        remedy="state one of these as the backbone's input_size",
    )


def _candidates(timm: Any, name: str, size: int) -> list[int]:
    """Sizes worth trying: the model's own, and those around `size` that patches, strides and windows divide."""
    own = timm.get_pretrained_cfg(name).input_size[-1]
    around = {size // step * step + more for step in (14, 16, 32, 224) for more in (0, step)}
    return [own, *sorted(edge for edge in around if 0 < edge <= 4 * own and edge not in (own, size))]


def _trial(timm: Any, name: str, size: int) -> Exception | None:
    """What goes wrong with a model for images of `size` pixels, tried with shapes alone, without numbers."""
    try:
        with torch.device("meta"), torch.no_grad():
            _sized(timm, name, size, pretrained=False).eval().forward_features(torch.empty(1, 3, size, size))
    except Exception as error:  # noqa: BLE001 -- timm asserts, or trips over shapes in any way
        return error
    return None


def _sized(timm: Any, name: str, size: int, **options: Any) -> Any:
    """`timm.create_model` for images of `size` pixels."""
    own = timm.get_pretrained_cfg(name).input_size[-1]
    with warnings.catch_warnings():
        # torch remarks on the speed of timm's interpolation of tables.
        warnings.filterwarnings("ignore", message="torch.searchsorted", category=UserWarning)
        if size != own:
            try:
                return timm.create_model(name, img_size=size, **options)
            except TypeError as error:  # convolutions take every size and no such argument
                if "img_size" not in str(error):
                    raise
        return timm.create_model(name, **options)


def _from_hub(timm: Any, name: str, size: int) -> Any:
    try:
        return _sized(timm, name, size, pretrained=True)
    except Exception as error:  # hub clients raise their own network errors; the remedy is the same
        raise CheckpointError(
            "the backbone's pretrained weights cannot be obtained",
            given=f"{name}: {type(error).__name__}: {error}",
            expected="a connection to the model hub, or the weights in its cache",
            remedy="download them elsewhere and pass the file with --backbone-weights FILE (Backbone(weights=...))",
        ) from error


def _from_chance(timm: Any, name: str, size: int, seed: str) -> Any:
    if not (seed.isascii() and seed.isdigit() and len(seed) < 19):
        raise ArgumentError(
            "bad seed of random backbone weights",
            given=f"random:{seed}",
            expected="random: and a number of at most 18 digits",
            remedy="write random:0",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _sized(timm, name, size, pretrained=False)


def _from_file(timm: Any, name: str, size: int, path: Path) -> Any:
    state = _read_state(path)
    # A model that was trained on other classes has another head than timm's.
    head = state.get(f"{timm.get_pretrained_cfg(name).classifier}.weight")
    classes = {} if head is None or head.ndim == 0 else {"num_classes": len(head)}
    try:
        # timm renames older keys and drops stale buffers for the models that need it, and loads strictly.
        overlay = {"state_dict": state, **classes}
        model = _sized(timm, name, size, pretrained=True, pretrained_cfg_overlay=overlay, **classes)
    except Exception as error:  # the renaming may trip over a foreign file in any way
        raise CheckpointMismatchError(
            f"the weights do not fit the backbone {name}",
            given=f"{path}: {type(error).__name__}: {str(error)[:500]}",
            expected="all weights of that timm model, under its names",
            remedy="pass the weights of this model, or name the model that they belong to",
        ) from error
    model.pretrained_cfg.pop("state_dict")  # timm keeps the dictionary it was given: the same memory again
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file; code in it never runs."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointNotFoundError(
            "there is no such file of backbone weights",
            given=path,
            expected="a file in timm's layout, .safetensors or of torch.save",
            remedy="correct the path, or leave it out for timm's own weights",
        )
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointUnsafeError(
            "the backbone's weight file holds more than tensors",
            given=f"{path}: {str(error)[:200]}",
            expected="a state_dict of tensors",
            remedy="save the state_dict alone, best as .safetensors",
        ) from error
    except Exception as error:  # both readers show damage in any exception
        raise CheckpointCorruptError(
            "the backbone's weight file cannot be read",
            given=f"{path}: {str(error)[:500] or type(error).__name__}",
            expected="a whole file, .safetensors or of torch.save",
            remedy="copy or download it again",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(_is_weight(*entry) for entry in state.items()):
        raise CheckpointMismatchError(
            "the backbone's weight file holds no state_dict",
            given=path,
            expected="a dictionary of dense tensors by their names",
            remedy="save the model's state_dict() alone",
        )
    return state


def _is_weight(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
    )
