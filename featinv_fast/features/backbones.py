"""The backbones of the official models, and timm models as feature extractors."""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointUnsafeError,
    MissingPackageError,
)
from featinv_fast.features import small_backbones
from featinv_fast.features.files import read_image
from featinv_fast.features.weights import weights_sha256

if TYPE_CHECKING:
    from PIL import Image

FINAL = "final"
_CONVNEXT = "convnext_base.fb_in22k_ft_in1k"

# arXiv 2505.21032 and its code. The timm tag of the ResNet50 and its image size are not published; its final map is
# the output of layer4.
KNOWN_BACKBONES: tuple[FeatureSpec, ...] = (
    FeatureSpec(backbone=_CONVNEXT, layer=FINAL, input_size=288, channels=1024, height=9, width=9),
    FeatureSpec(backbone=_CONVNEXT, layer="0", input_size=288, channels=128, height=72, width=72),
    FeatureSpec(backbone=_CONVNEXT, layer="1", input_size=288, channels=256, height=36, width=36),
    FeatureSpec(backbone=_CONVNEXT, layer="2", input_size=288, channels=512, height=18, width=18),
    FeatureSpec(backbone=_CONVNEXT, layer="3", input_size=288, channels=1024, height=9, width=9),
    FeatureSpec(
        backbone="swinv2_base_window12to24_192to384.ms_in22k_ft_in1k",
        layer=FINAL,
        input_size=384,
        channels=1024,
        height=12,
        width=12,
        layout=FeatureLayout.NHWC,
    ),
    FeatureSpec(backbone="resnet50", layer=FINAL, channels=2048),
)


def known_spec(name: str, layer: str = FINAL) -> FeatureSpec:
    """The spec of an official backbone by its timm name, with or without the tag after the dot.

    Raises:
        ArgumentError: the table has no such backbone or layer.
    """
    for spec in KNOWN_BACKBONES:
        if (
            spec.backbone is not None
            and name in (spec.backbone, spec.backbone.partition(".")[0])
            and spec.layer == layer
        ):
            return spec
    raise ArgumentError(
        "no official backbone has this name and layer",
        given=f"{name!r}, layer {layer!r}",
        expected=", ".join(f"{spec.backbone} layer {spec.layer}" for spec in KNOWN_BACKBONES),
        remedy="describe your own with FeatureSpec",
    )


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre of `image` as RGB, `size` pixels square, its shorter side resized to `size` first (bilinear).

    The same pixels as torchvision's Resize(size) and CenterCrop(size), the official preprocessing.
    """
    from PIL import Image

    image = image.convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    resized = (int(size * width / shorter), int(size * height / shorter))
    if resized != image.size:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = (round((edge - size) / 2) for edge in resized)
    return image.crop((left, top, left + size, top + size))


class Backbone:
    """A timm model that computes the feature maps which `spec` describes.

    Args:
        spec: `backbone` names the timm model and `layer` the map: "final" is what `forward_features` returns, a number
            the stage that `features_only=True` counts. Maps come out in `spec.layout`.
        weights: a local file in timm's layout (`.safetensors`, or a torch file, of which only tensors are read). None
            lets timm download its pretrained weights. "random:SEED" gives untrained weights, for trying a pipeline
            without a network: their features mean nothing.
        device: where the model runs.

    Raises:
        MissingPackageError: timm is not installed.
        ArgumentError: an unknown model or layer, or a layout that the model cannot give.
        CheckpointError: the weights cannot be obtained, read or fitted.
    """

    def __init__(
        self, spec: FeatureSpec, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self._stage = _stage_index(spec)
        model = _create_model(spec.backbone, weights)
        stages = len(model.feature_info) if hasattr(model, "forward_intermediates") else 0
        if self._stage is not None and self._stage >= stages:
            raise ArgumentError(
                "this backbone has no such stage",
                given=f"{spec.backbone}, layer {spec.layer}",
                expected=f"a number below {stages}, or {FINAL!r}",
            )
        self._model = model.eval().requires_grad_(False).to(self.device)
        defaults = model.pretrained_cfg
        # Where the engine does not say, the size at which timm evaluates the model.
        self.input_size: int = spec.input_size or (defaults.get("test_input_size") or defaults["input_size"])[-1]

    @property
    def model(self) -> Any:
        """The timm model itself, frozen; unlike `__call__` it lets gradients flow to its input."""
        return self._model

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Which weights these are, whatever file they came from: see `features.weights`."""
        return weights_sha256(self._model)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the network's input [B, 3, S, S] on the CPU: resized, cropped, scaled to [0, 1], normalised.

        Raises:
            ArgumentTypeError: something other than PIL images.
        """
        from PIL import Image

        for i, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise ArgumentTypeError(f"images[{i}] is no image", given=type(image).__name__, expected="a PIL image")
        size = self.input_size
        if not images:
            return torch.empty(0, 3, size, size)
        crops = np.stack([np.asarray(center_crop(image, size)) for image in images])
        pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).to(torch.float32).div(255)  # [B, 3, S, S]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.spec.mean, self.spec.std))
        return pixels.sub(mean).div(std).contiguous()

    # no_grad, not inference_mode: training feeds these maps to layers that save their inputs for the backward pass.
    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of preprocessed `pixels` [B, 3, S, S] in `spec.layout`, on the backbone's device."""
        pixels = pixels.to(self.device)
        if self._stage is None:
            features: Tensor = self._model.forward_features(pixels)
            return features
        (features,) = self._model.forward_intermediates(
            pixels, indices=[self._stage], stop_early=True, intermediates_only=True
        )
        return self._arranged(features)

    @torch.no_grad()
    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features as `__call__` gives them, and the class logits [B, K] of the same forward pass.

        The logits are None for a model without a classifier.
        """
        pixels = pixels.to(self.device)
        if self._stage is None:
            final = features = self._model.forward_features(pixels)
        else:
            final, (features,) = self._model.forward_intermediates(pixels, indices=[self._stage])
            features = self._arranged(features)
        return features, self._model.forward_head(final) if self._model.num_classes else None

    def extract(self, images: Iterable[Image.Image | str | Path], *, batch_size: int = 8) -> Iterator[Tensor]:
        """Features of images or image files, one batch at a time and in order.

        Raises:
            ArgumentError: a file that is no readable image.
        """
        remaining = iter(images)
        while batch := list(itertools.islice(remaining, batch_size)):
            opened = [read_image(image) if isinstance(image, str | Path) else image for image in batch]
            yield self(self.preprocess(opened))

    def _arranged(self, stage: Tensor) -> Tensor:
        # timm gives every stage as [B, C, H, W], also where `features_only` keeps Swin's [B, H, W, C].
        return stage.permute(0, 2, 3, 1) if self.spec.layout is FeatureLayout.NHWC else stage


def _stage_index(spec: FeatureSpec) -> int | None:
    """The number of the stage that `spec.layer` names, None for the final map."""
    if spec.layout is FeatureLayout.POOLED:
        raise ArgumentError(
            "how the pooled features of this engine were pooled is not recorded",
            given=f"{spec.backbone}, pooled",
            remedy="compute them as in training and pass [B, C]",
        )
    if spec.more_layers:
        raise ArgumentError(
            "a backbone gives one layer at a time",
            given=[spec.layer, *(layer.layer for layer in spec.more_layers)],
            expected="one layer",
            remedy="open a backbone for each",
        )
    if spec.layer in (None, FINAL):
        return None
    if not (spec.layer.isascii() and spec.layer.isdigit()) or spec.layout is FeatureLayout.TOKENS:
        raise ArgumentError(
            "unknown backbone layer",
            given=f"{spec.layer!r} with layout {str(spec.layout)!r}",
            expected=f"{FINAL!r}, or the number of a stage with layout 'nchw' or 'nhwc'",
        )
    return int(spec.layer)


def _create_model(name: str | None, weights: str | Path | None) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            "computing features needs timm", remedy="pip install 'featinv-fast[timm]', or pass feature maps"
        ) from error
    small_backbones.register()
    if name is None or not timm.is_model(name):
        raise ArgumentError(
            "unknown backbone", given=name, expected="the name of a timm model", remedy="see timm.list_models()"
        )
    if weights is None:
        return _create_pretrained(timm, name)
    if str(weights).startswith("random:"):
        return _create_random(timm, name, str(weights).removeprefix("random:"))
    return _create_from_file(timm, name, Path(weights))


def _create_pretrained(timm: Any, name: str) -> Any:
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # hub clients raise their own network errors; the remedy is the same
        raise CheckpointError(
            "the backbone's pretrained weights cannot be obtained",
            given=f"{name}: {type(error).__name__}: {error}",
            expected="a connection to the model hub, or the weights in its cache",
            remedy="download them elsewhere and pass the file with --backbone-weights FILE (Backbone(weights=...))",
        ) from error


def _create_random(timm: Any, name: str, seed: str) -> Any:
    if not (seed.isascii() and seed.isdigit()):
        raise ArgumentError("bad seed of random backbone weights", given=f"random:{seed}", expected="random:0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return timm.create_model(name, pretrained=False)


def _create_from_file(timm: Any, name: str, path: Path) -> Any:
    state = _read_state(path)
    # A model that was trained on other classes has another head than timm's.
    head = state.get(f"{timm.get_pretrained_cfg(name).classifier}.weight")
    classes = {} if head is None else {"num_classes": len(head)}
    try:
        # timm renames older keys and drops stale buffers for the models that need it, and loads strictly.
        overlay = {"state_dict": state, **classes}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **classes)
    except Exception as error:  # the renaming may trip over a foreign file in any way
        raise CheckpointMismatchError(
            f"the weights do not fit the backbone {name}",
            given=f"{path}: {type(error).__name__}: {str(error)[:500]}",
            expected="all weights of that timm model, under its names",
        ) from error
    model.pretrained_cfg.pop("state_dict")  # timm keeps the dictionary it was given: the same memory again
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file; code in it never runs."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError("there is no such file of backbone weights", given=path)
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
            remedy="save the state_dict alone, best as .safetensors",
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointCorruptError("the backbone's weight file cannot be read", given=f"{path}: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointMismatchError(
            "the backbone's weight file holds no state_dict", given=path, expected="a dictionary of tensors"
        )
    return state
