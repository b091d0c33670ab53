"""timm models by name, of the hub (`hf-hub:ID`) or a folder (`local-dir:PATH`), for images of any size they take."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.checks import did_you_mean
from featinv_fast.config import FINAL
from featinv_fast.errors import ArgumentError, InputNotFoundError, MissingPackageError
from featinv_fast.features import small_backbones
from featinv_fast.features.sources.base import Network, Pass, impossible_size
from featinv_fast.features.sources.weight_files import CONCEPT_HEADS, is_random, read_state, seeded, unfit, unobtainable
from featinv_fast.features.weights import classifiers

_HUB, _FOLDER = "hf-hub:", "local-dir:"


class Timm:
    """See `Source`."""

    words = "the name of a timm model (also hf-hub:ID or local-dir:PATH)"
    runs_code = False

    def serves(self, name: str) -> bool:
        """See `Source`."""
        return name.startswith((_HUB, _FOLDER)) or ":" not in name

    def is_place(self, name: str) -> bool:
        """See `Source`."""
        return name.startswith(_FOLDER)

    def open(self, name: str, weights: str | Path | None, size: int | None) -> Network:
        """See `Source`."""
        config = published(name)
        size = evaluation_size(config) if size is None else size
        return TimmNetwork(name, _create(name, config, weights, size), size=size)


class TimmNetwork(Network):
    """A model that has timm's methods.

    Args:
        name: what it was opened by.
        model: with its `pretrained_cfg`.
        size: edge in pixels of its images.
    """

    def __init__(self, name: str, model: Any, *, size: int) -> None:
        self._config: Mapping[str, Any] = model.pretrained_cfg
        mean, std = (tuple(self._config[constant]) for constant in ("mean", "std"))
        super().__init__(name, model, size=size, mean=mean, std=std, heads=classifiers(model))

    @property
    def counted(self) -> tuple[str, ...]:
        """What `forward_features` returns, and the stages that `features_only=True` counts."""
        stages = len(self.model.feature_info) if hasattr(self.model, "forward_intermediates") else 0
        return FINAL, *map(str, range(stages))

    def forward(self, pixels: Tensor, layers: Sequence[str], *, logits: bool) -> Pass:
        """See `Network`; stages are [B, C, H, W], also where `features_only` keeps Swin's [B, H, W, C]."""
        stages = sorted(int(layer) for layer in layers if layer != FINAL)
        final, maps = None, []
        if stages and (logits or FINAL in layers):
            final, maps = self.model.forward_intermediates(pixels, indices=stages)
        elif stages:
            maps = self.model.forward_intermediates(pixels, indices=stages, stop_early=True, intermediates_only=True)
        else:
            final = self.model.forward_features(pixels)
        given = {str(stage): one for stage, one in zip(stages, maps, strict=True)}
        classes = self.model.forward_head(final) if logits and self.model.num_classes else None
        return given | ({FINAL: final} if FINAL in layers else {}), classes

    def arranged(self, layer: str, pixels: Tensor) -> list[Tensor]:
        """See `Network`."""
        found = []
        for norm in (True, False):
            try:
                (one,) = self.model.forward_intermediates(
                    pixels, indices=1 if layer == FINAL else [int(layer)], norm=norm, intermediates_only=True
                )
            except Exception:  # noqa: BLE001, S112 -- models without this method, or without a norm
                continue
            if isinstance(one, Tensor) and one.ndim == 4:
                found.append(one)
        return found

    def possible_sizes(self, size: int) -> list[int]:
        """See `Network`."""
        return _possible_sizes(self.name, self._config, size)


def new_model(name: str, size: int, **options: Any) -> Any:
    """A timm model for images of `size` pixels with new weights, to be trained; `options` are timm's.

    Raises:
        MissingPackageError, ArgumentError: see `Source`.
    """
    config = published(name)
    _require_size(name, config, size)
    return _sized(name, config, size, pretrained=False, **options)


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


def published(name: str) -> Mapping[str, Any]:
    """What timm, the hub or the folder says of a model: `input_size`, `mean`, `std`, `classifier`, ...

    Raises:
        MissingPackageError: timm is not installed.
        ArgumentError: there is no such model.
        CheckpointError: the hub cannot be reached.
    """
    timm = require_timm()
    if not name.startswith((_HUB, _FOLDER)):
        if not timm.is_model(name):
            near = did_you_mean(name.partition(".")[0], timm.list_models())
            raise ArgumentError(
                "unknown backbone",
                given=name,
                expected="the name of a timm model",
                remedy=f"did you mean {near}?" if near else "see timm.list_models()",
            )
        return vars(timm.get_pretrained_cfg(name))
    folder = Path(name.removeprefix(_FOLDER))
    if name.startswith(_FOLDER) and not (folder / "config.json").is_file():
        raise InputNotFoundError(
            "there is no timm model in this folder",
            given=name,
            expected="a folder with config.json and the weights, as timm.models.save_for_hf writes them",
            remedy="correct the path",
        )
    try:
        with torch.device("meta"):
            config: Mapping[str, Any] = timm.create_model(name, pretrained=False).pretrained_cfg
    except Exception as error:  # hub clients raise their own network errors, files may say anything
        raise unobtainable(name, error) from error
    return config


def evaluation_size(config: Mapping[str, Any]) -> int:
    """Edge in pixels of the images that timm evaluates a model with, by what is `published` of it."""
    size: int = (config.get("test_input_size") or config["input_size"])[-1]
    return size


def _create(name: str, config: Mapping[str, Any], weights: str | Path | None, size: int) -> Any:
    """A timm model; one that is made for one size is made for this one, its tables of positions interpolated."""
    _require_size(name, config, size)
    if is_random(weights):
        with seeded(weights):
            return _sized(name, config, size, pretrained=False)
    if weights is not None:
        return _from_file(name, config, size, Path(weights))
    try:
        return _sized(name, config, size, pretrained=True)
    except Exception as error:  # hub clients raise their own network errors; the remedy is the same
        raise unobtainable(name, error) from error


def _require_size(name: str, config: Mapping[str, Any], size: int) -> None:
    """Refuse a size of images that the model cannot take, before any weights are fetched.

    Raises:
        ArgumentError: it names sizes that the model can take.
    """
    own = config["input_size"][-1]
    # A model that cannot be tried so at its own size is left to its first real image.
    if size != own and (error := _trial(name, config, size)) and _trial(name, config, own) is None:
        raise impossible_size(name, size, error, _possible_sizes(name, config, size))


def _possible_sizes(name: str, config: Mapping[str, Any], size: int) -> list[int]:
    """Of the model's own size and those around `size` that patches, strides and windows divide, those that work."""
    own = config["input_size"][-1]
    around = {size // step * step + more for step in (14, 16, 32, 224) for more in (0, step)}
    candidates = [own, *sorted(edge for edge in around if 0 < edge <= 4 * own and edge not in (own, size))]
    return [edge for edge in candidates if _trial(name, config, edge) is None]


def _trial(name: str, config: Mapping[str, Any], size: int) -> Exception | None:
    """What goes wrong with a model for images of `size` pixels, tried with shapes alone, without numbers."""
    try:
        with torch.device("meta"), torch.no_grad():
            model = _sized(name, config, size, pretrained=False).eval()
            model.forward_features(torch.empty(1, 3, size, size))
    except Exception as error:  # noqa: BLE001 -- timm asserts, or trips over shapes in any way
        return error
    return None


def _sized(name: str, config: Mapping[str, Any], size: int, **options: Any) -> Any:
    """`timm.create_model` for images of `size` pixels."""
    timm = require_timm()
    with warnings.catch_warnings():
        # torch remarks on the speed of timm's interpolation of tables.
        warnings.filterwarnings("ignore", message="torch.searchsorted", category=UserWarning)
        if size != config["input_size"][-1]:
            try:
                return timm.create_model(name, img_size=size, **options)
            except TypeError as error:  # convolutions take every size and no such argument
                if "img_size" not in str(error):
                    raise
        return timm.create_model(name, **options)


def _from_file(name: str, config: Mapping[str, Any], size: int, path: Path) -> Any:
    state = {name: tensor for name, tensor in read_state(path).items() if not name.startswith(CONCEPT_HEADS)}
    # A model that was trained on other classes has another head than timm's.
    head = state.get(f"{config.get('classifier')}.weight")
    classes = {} if head is None or head.ndim == 0 else {"num_classes": len(head)}
    try:
        # timm renames older keys and drops stale buffers for the models that need it, and loads strictly.
        overlay = {"state_dict": state, "source": "", **classes}
        model = _sized(name, config, size, pretrained=True, pretrained_cfg_overlay=overlay, **classes)
    except Exception as error:  # the renaming may trip over a foreign file in any way
        raise unfit(name, path, error) from error
    model.pretrained_cfg.pop("state_dict")  # timm keeps the dictionary it was given: the same memory again
    return model
