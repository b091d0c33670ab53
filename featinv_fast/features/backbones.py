"""Vision models as feature extractors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.config import AS_STORED, FINAL, FeatureLayout, FeatureSpec, ImageReading, LayerSpec
from featinv_fast.errors import ArgumentError, CheckpointMismatchError, FeatInvError, FeatureLayoutError
from featinv_fast.features.images import center_crop, read_image
from featinv_fast.features.map_form import MapForm, map_form
from featinv_fast.features.normalisation import constants
from featinv_fast.features.places import items_at, place_of
from featinv_fast.features.sources import Network, source_of
from featinv_fast.features.sources.base import impossible_size
from featinv_fast.features.weights import weights_sha256
from featinv_kernels.packed_maps import pack
from featinv_kernels.torch_state import neutral_torch_state

if TYPE_CHECKING:
    from PIL import Image


class Backbone:
    """A vision model that computes the feature maps which `spec` describes.

    Args:
        spec: `backbone` names the model: a timm model (also `hf-hub:ID`, `local-dir:PATH`), `torchvision:NAME`, `hf:ID`
            or `hf:FOLDER` of transformers, or `module:function` of your own. `layer` names the map: "final" is the
            model's last one, a number a stage as timm or transformers counts them, anything else the path of a module.
            What is left open is the model's own: the size of the images, mean and standard deviation, the layout (of
            timm's stages: "nchw", or "nhwc" where that is stated). `more_layers` name further layers of the same pass,
            whose channels and sizes are found likewise.
        weights: a local file under the model's own names (`.safetensors`, or a torch file, of which only tensors are
            read). None lets the library download its pretrained weights. "random:SEED" gives untrained weights, for
            trying a pipeline without a network: their features mean nothing.
        device: where the model runs.
        run_code: whether `module:function` may be run. What it names is code: say so where you, not a checkpoint or an
            engine, name it.

    Attributes:
        spec: complete: channels, size, layout and prefix tokens are those of the map that the model gives, and the
            hash is that of its weights (see `features.weights`).
        network: the model as its source opened it, frozen; unlike `__call__` it lets gradients flow to its input.
        device: where the model runs.
        input_size: edge in pixels of its images.

    Raises:
        MissingPackageError: the model's library is not installed.
        ArgumentError: an unknown model or layer, one that gives no map, a size of images that it cannot take, code that
            may not be run, or nobody says the size or the normalisation of its images.
        FeatureLayoutError: the map has another layout than `spec` states.
        CheckpointError: the weights cannot be obtained, read or fitted.
        CheckpointMismatchError: `spec` names other weights.
    """

    @neutral_torch_state()
    def __init__(
        self,
        spec: FeatureSpec,
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        run_code: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self._layers = _layers(spec)
        self.network = _open(spec, weights, run_code=run_code)
        self.network.model.to(self.device)
        self.input_size = _size(self.network)
        weights_found = weights_sha256(self.network.model, self.network.heads)
        if spec.weights_sha256 not in (None, weights_found):
            raise _other_weights(spec, weights_found, weights)
        self._forms = self._measured()
        mean, std = constants(self.network.name, (self.network.mean, self.network.std), spec.mean, spec.std)
        self.spec = dataclasses.replace(
            _with_forms(spec, self._forms),
            layer=self._layers[0],
            input_size=self.input_size,
            mean=mean,
            std=std,
            weights_sha256=weights_found,
        )

    @property
    def weights_sha256(self) -> str:
        """Which weights these are, whatever file they came from: see `features.weights`."""
        assert self.spec.weights_sha256 is not None
        return self.spec.weights_sha256

    @property
    def model(self) -> Any:
        """The module itself, of the library's own class."""
        return self.network.model

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
        """Features of preprocessed `pixels` [B, 3, S, S] in `spec.layout`, on the backbone's device.

        Those of several layers are packed in their order, [B, K, 1, 1]: see `featinv_kernels.packed_maps`.
        """
        maps, _ = self.network.read(pixels.to(self.device), self._layers)
        return self._arranged(maps)

    @neutral_torch_state()
    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features as `__call__` gives them, and the class logits [B, K] of the same forward pass.

        The logits are None for a model without a classifier.
        """
        maps, logits = self.network.read(pixels.to(self.device), self._layers, logits=True)
        return self._arranged(maps), logits

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

    def _arranged(self, maps: Sequence[Tensor]) -> Tensor:
        if len(maps) > 1:
            return pack([form.arrange(one) for form, one in zip(self._forms, maps, strict=True)])
        # A stage, which libraries arrange themselves, comes in either order.
        turned = self.spec.layout is FeatureLayout.NHWC and self._forms[0].layout is FeatureLayout.NCHW
        return maps[0].permute(0, 2, 3, 1) if turned else maps[0]

    @neutral_torch_state()
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Every layer that the network has -> the shape of what it gives of one image, without the batch.

        First "final" and the stages, where the library counts some, then modules in the order in which they run.
        """
        counted = list(self.network.counted)
        maps, _ = self.network.read(self._random_image(), counted) if counted else ([], None)
        found = {layer: tuple(one.shape[1:]) for layer, one in zip(counted, maps, strict=True)}
        return found | {seen.path: seen.shape[1:] for seen in self.network.seen if seen.gives_map and seen.path}

    def _random_image(self) -> Tensor:
        size, generator = self.input_size, torch.Generator("cpu").manual_seed(0)
        return torch.randn(1, 3, size, size, generator=generator, dtype=torch.float32, device="cpu").to(self.device)

    def _measured(self) -> list[MapForm]:
        """The form of each layer's map, by looking at a random image."""
        size, pixels = self.input_size, self._random_image()
        try:
            self.network.look(pixels)
        except (FeatInvError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # models assert, or trip over their own shapes
            raise impossible_size(self.network.name, size, error, self.network.possible_sizes(size)) from error
        return [map_form(self.network, layer, pixels) for layer in self._layers]


def _open(spec: FeatureSpec, weights: str | Path | None, *, run_code: bool) -> Network:
    source = source_of(spec.backbone)
    assert spec.backbone is not None
    if source.runs_code and not run_code:
        raise ArgumentError(
            "this backbone is code, which runs only where you name it yourself",
            given=f"{spec.backbone}, as a checkpoint, an engine or a feature file names it",
            expected="the same name from you",
            remedy=f"open_backbone({spec.backbone!r}), which you may pass on, or run_code=True, once you trust it",
            command_remedy=f"pass --backbone {spec.backbone}, once you trust it",
        )
    return source.open(spec.backbone, weights, spec.input_size)


def _size(network: Network) -> int:
    if network.size is None:
        raise ArgumentError(
            "the size of this backbone's images is not known",
            given=network.name,
            expected="an attribute `input_size` of the network, or a size that is stated",
            remedy="state FeatureSpec.input_size, or open_backbone(..., image_size=224)",
            command_remedy="pass --image-size, or state backbone.input_size in a recipe",
        )
    return network.size


def _layers(spec: FeatureSpec) -> list[str]:
    """The layers that `spec` names.

    Raises:
        ArgumentError: it is none that a backbone could compute.
    """
    if spec.layout is FeatureLayout.POOLED:
        raise ArgumentError(
            "how the pooled features of this engine were pooled is not recorded",
            given=f"{spec.backbone}, pooled",
            expected="pooled features [B, C]",
            remedy="compute them as in training and pass [B, C]",
        )
    names = [layer.layer for layer in spec.layers]
    if len(set(names)) < len(names):
        raise ArgumentError(
            "a layer is named twice", given=names, expected="different layers", remedy="name each layer once"
        )
    return names


def _with_forms(spec: FeatureSpec, forms: Sequence[MapForm]) -> FeatureSpec:
    """`spec` with the map as it is, or with those of several layers as they are packed.

    Raises:
        FeatureLayoutError: `spec` states another layout, or another number of prefix tokens.
    """
    form = forms[0]
    if len(forms) > 1:
        more = [
            LayerSpec(layer=layer.layer, channels=one.channels, height=one.height, width=one.width)
            for layer, one in zip(spec.more_layers, forms[1:], strict=True)
        ]
        spec = dataclasses.replace(spec, more_layers=tuple(more))
        form = dataclasses.replace(form, layout=FeatureLayout.NCHW, prefix_tokens=None)
    elif spec.layout is FeatureLayout.NHWC and form.layout is FeatureLayout.NCHW and (spec.layer or "").isdigit():
        form = dataclasses.replace(form, layout=FeatureLayout.NHWC)
    stated = (spec.layout, spec.prefix_tokens)
    if stated[0] not in (None, form.layout) or stated[1] not in (None, form.prefix_tokens):
        raise FeatureLayoutError(
            "the backbone's map has another layout than is stated",
            given=_layout_in_words(*stated),
            expected=f"{_layout_in_words(form.layout, form.prefix_tokens)}, as {spec.backbone}, layer "
            f"{spec.layer_names or FINAL}, gives it",
            remedy="leave the layout out: it is found by looking at a map",
        )
    return dataclasses.replace(spec, **dataclasses.asdict(form))


def _layout_in_words(layout: FeatureLayout | None, prefix_tokens: int | None) -> str:
    tokens = "" if prefix_tokens is None else f" with prefix_tokens = {prefix_tokens}"
    return f"layout {str(layout)!r}{tokens}"


def _other_weights(spec: FeatureSpec, found: str, weights: str | Path | None) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        "these are not the backbone's weights that the features were computed with",
        given=f"{'the published weights' if weights is None else weights}: sha256 {found}",
        expected=f"{spec.backbone} with sha256 {spec.weights_sha256}",
        remedy="pass the file of the weights that were used in training: --backbone-weights FILE "
        "(Backbone(weights=...))",
    )
