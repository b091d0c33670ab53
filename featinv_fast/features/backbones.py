"""timm models as feature extractors."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.config import AS_STORED, FeatureLayout, FeatureSpec, ImageReading
from featinv_fast.errors import ArgumentError, CheckpointMismatchError, FeatInvError, FeatureLayoutError
from featinv_fast.features.images import center_crop, read_image
from featinv_fast.features.known import FINAL
from featinv_fast.features.map_form import MapForm, final_form, stage_form
from featinv_fast.features.normalisation import constants
from featinv_fast.features.places import items_at, place_of
from featinv_fast.features.timm_models import create_model, evaluation_size, impossible_size, known_name
from featinv_fast.features.weights import weights_sha256
from featinv_kernels.torch_state import neutral_torch_state

if TYPE_CHECKING:
    from PIL import Image


class Backbone:
    """A timm model that computes the feature maps which `spec` describes.

    Args:
        spec: `backbone` names the timm model and `layer` the map: "final" is what `forward_features` returns, a number
            the stage that `features_only=True` counts. What it leaves open is the model's own: the size of the images,
            mean and standard deviation, the layout (of a stage: "nchw", or "nhwc" where that is stated).
        weights: a local file in timm's layout (`.safetensors`, or a torch file, of which only tensors are read). None
            lets timm download its pretrained weights. "random:SEED" gives untrained weights, for trying a pipeline
            without a network: their features mean nothing.
        device: where the model runs.

    Attributes:
        spec: complete: channels, size, layout and prefix tokens are those of the map that the model gives.
        device: where the model runs.
        input_size: edge in pixels of its images.

    Raises:
        MissingPackageError: timm is not installed.
        ArgumentError: an unknown model or layer, one that gives no map, or a size of images that it cannot take.
        FeatureLayoutError: the map has another layout than `spec` states.
        CheckpointError: the weights cannot be obtained, read or fitted.
        CheckpointMismatchError: `spec` names other weights.
    """

    @neutral_torch_state()
    def __init__(
        self, spec: FeatureSpec, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._stage = _stage_index(spec)
        name = known_name(spec.backbone)
        self.input_size: int = evaluation_size(name) if spec.input_size is None else spec.input_size
        model = create_model(name, weights, self.input_size).eval().requires_grad_(False)
        _check_stage(model, spec, self._stage)
        self._model = model.to(self.device)
        if spec.weights_sha256 not in (None, self.weights_sha256):
            raise _other_weights(spec, self.weights_sha256, weights)
        mean, std = constants(model, spec.mean, spec.std)
        self.spec = dataclasses.replace(
            _with_form(spec, self._measured(name)), input_size=self.input_size, mean=mean, std=std
        )

    @property
    def model(self) -> Any:
        """The timm model itself, frozen; unlike `__call__` it lets gradients flow to its input."""
        return self._model

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Which weights these are, whatever file they came from: see `features.weights`."""
        return weights_sha256(self._model)

    def preprocess(self, images: Sequence[Image.Image], reading: ImageReading = AS_STORED) -> Tensor:
        """Images as the network's input [B, 3, S, S] on the CPU: resized, cropped, scaled to [0, 1], normalised.

        Resized bilinearly to S and cropped in the centre, as FeatInv's code does for every backbone; timm evaluates
        some models with another interpolation and a share of a larger image.

        Raises:
            ArgumentTypeError: something other than PIL images.
            ArgumentError: an image of no pixels, or of a mode without a fixed range.
        """
        size = self.input_size
        if not images:
            return torch.empty(0, 3, size, size)
        crops = [
            np.asarray(center_crop(image, size, reading, name=f"images[{place_of(i)}]"))
            for i, image in enumerate(images)
        ]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(torch.float32).div(255)  # [B, 3, S, S]
        return self.normalised(pixels).contiguous()

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] in [0, 1] as the network wants them, on their own device."""
        assert self.spec.mean is not None
        assert self.spec.std is not None
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.spec.mean, self.spec.std))
        return pixels.sub(mean).div(std)

    # Not in inference mode: training feeds these maps to layers that save their inputs for the backward pass.
    @neutral_torch_state()
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

    @neutral_torch_state()
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

    def extract(
        self, images: Iterable[Image.Image | str | Path], *, batch_size: int = 8, reading: ImageReading = AS_STORED
    ) -> Iterator[Tensor]:
        """Features of images or image files, one batch at a time and in order.

        Raises:
            ArgumentTypeError: something else among them.
            ArgumentError: a file that is no readable image.
        """
        remaining = iter(images)
        done = 0
        while batch := list(itertools.islice(remaining, batch_size)):
            opened = [read_image(image, reading) if isinstance(image, str | Path) else image for image in batch]
            with items_at(done):
                pixels = self.preprocess(opened, reading)
            yield self(pixels)
            done += len(batch)

    def _arranged(self, stage: Tensor) -> Tensor:
        # timm gives every stage as [B, C, H, W], also where `features_only` keeps Swin's [B, H, W, C].
        return stage.permute(0, 2, 3, 1) if self.spec.layout is FeatureLayout.NHWC else stage

    def _measured(self, name: str) -> MapForm:
        """The form of the map, by one random image."""
        shape = (1, 3, self.input_size, self.input_size)
        pixels = torch.randn(
            shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
        ).to(self.device)
        try:
            if self._stage is None:
                return final_form(self._model, pixels)
            return stage_form(self._model, self._stage, pixels)
        except (FeatInvError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # timm's models assert, or trip over their own shapes
            raise impossible_size(name, self.input_size, error) from error


def _with_form(spec: FeatureSpec, form: MapForm) -> FeatureSpec:
    """`spec` with the map as it is.

    Raises:
        FeatureLayoutError: `spec` states another layout, or another number of prefix tokens.
    """
    stated = (spec.layout, spec.prefix_tokens)
    chosen = spec.layer not in (None, FINAL) and spec.layout is FeatureLayout.NHWC  # a stage comes in either order
    layout = FeatureLayout.NHWC if chosen else form.layout
    if stated[0] not in (None, layout) or stated[1] not in (None, form.prefix_tokens):
        raise FeatureLayoutError(
            "the backbone's map has another layout than is stated",
            given=_layout_in_words(*stated),
            expected=f"{_layout_in_words(layout, form.prefix_tokens)}, as {spec.backbone}, layer "
            f"{spec.layer or FINAL}, gives it",
            remedy="leave the layout out: it is found by looking at a map",
        )
    return dataclasses.replace(spec, **(dataclasses.asdict(form) | {"layout": layout}))


def _layout_in_words(layout: FeatureLayout | None, prefix_tokens: int | None) -> str:
    tokens = "" if prefix_tokens is None else f" with prefix_tokens = {prefix_tokens}"
    return f"layout {str(layout)!r}{tokens}"


def _check_stage(model: Any, spec: FeatureSpec, stage: int | None) -> None:
    stages = len(model.feature_info) if hasattr(model, "forward_intermediates") else 0
    if stage is not None and stage >= stages:
        raise ArgumentError(
            "this backbone has no such stage",
            given=f"{spec.backbone}, layer {spec.layer}",
            expected=f"a number below {stages}, or {FINAL!r}",
            remedy=f"name one of these, or {FINAL!r}",
        )


def _other_weights(spec: FeatureSpec, found: str, weights: str | Path | None) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        "these are not the backbone's weights that the features were computed with",
        given=f"{'the weights that timm downloads' if weights is None else weights}: sha256 {found}",
        expected=f"{spec.backbone} with sha256 {spec.weights_sha256}",
        remedy="pass the file of the weights that were used in training: --backbone-weights FILE "
        "(Backbone(weights=...))",
    )


def _stage_index(spec: FeatureSpec) -> int | None:
    """The number of the stage that `spec.layer` names, None for the final map."""
    if spec.layout is FeatureLayout.POOLED:
        raise ArgumentError(
            "how the pooled features of this engine were pooled is not recorded",
            given=f"{spec.backbone}, pooled",
            expected="pooled features [B, C]",
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
            remedy="name one of these",
        )
    return int(spec.layer)
