"""Vision models of transformers: `hf:ID` of the hub, or `hf:FOLDER` with a configuration and maybe weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.config import FINAL
from featinv_fast.errors import ArgumentError, InputNotFoundError, MissingPackageError
from featinv_fast.features.normalisation import Constants
from featinv_fast.features.sources.base import Network, Pass
from featinv_fast.features.sources.weight_files import is_random, read_state, seeded, unfit, unobtainable

_PREFIX = "hf:"
# What transformers calls the parts behind the map; many files hold no weights for them, and new ones are drawn.
_HEADS = ("pooler", "head", "vision_model.head", "classifier")


class Transformers:
    """See `Source`."""

    words = "hf:ID or hf:FOLDER of a vision model in transformers"
    runs_code = False

    def serves(self, name: str) -> bool:
        """See `Source`."""
        return name.startswith(_PREFIX)

    def is_place(self, name: str) -> bool:
        """See `Source`."""
        return _is_folder(name.removeprefix(_PREFIX))

    def open(self, name: str, weights: str | Path | None, size: int | None) -> Network:
        """See `Source`."""
        transformers = _transformers()
        place = name.removeprefix(_PREFIX)
        if _is_folder(place) and not (Path(place) / "config.json").is_file():
            raise InputNotFoundError(
                "there is no model of transformers in this folder",
                given=name,
                expected="a folder with config.json, as save_pretrained writes it",
                remedy="correct the path",
            )
        try:
            config = transformers.AutoConfig.from_pretrained(place)
            processing = _processing(place)
        except Exception as error:  # hub clients raise their own network errors, files may say anything
            raise unobtainable(name, error) from error
        config = getattr(config, "vision_config", None) or config  # of models that also read text
        model = _create(transformers, name, config, weights)
        return TransformersNetwork(name, model, size=size, processing=processing)


class TransformersNetwork(Network):
    """A model that takes `pixel_values` and gives a `last_hidden_state`.

    Args:
        name: what it was opened by.
        model: without a head of its own.
        size: edge in pixels of its images; None is what it was published with.
        processing: the published preprocessing, `preprocessor_config.json`.
    """

    def __init__(self, name: str, model: Any, *, size: int | None, processing: Mapping[str, Any]) -> None:
        made_for = _edge(getattr(model.config, "image_size", None))
        mean, std = _constants(processing)
        crop = processing.get("crop_size") if processing.get("do_center_crop", True) else None
        published = _edge(crop or processing.get("size")) or made_for
        super().__init__(name, model, size=published if size is None else size, mean=mean, std=std, heads=_HEADS)
        # Tables of positions of another size are interpolated by themselves, on request, or not at all.
        other = self.size != made_for and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if other else {}
        self._states = 0

    @property
    def counted(self) -> tuple[str, ...]:
        """`last_hidden_state`, and the `hidden_states` as transformers counts them: "0" is before the first block."""
        return FINAL, *map(str, range(self._states))

    def look(self, pixels: Tensor) -> None:
        """See `Network`."""
        super().look(pixels)
        self._states = len(self._output(pixels, states=True).get("hidden_states") or ())

    def forward(self, pixels: Tensor, layers: Sequence[str], *, logits: bool) -> Pass:  # noqa: ARG002 -- it has none
        """See `Network`; there are no logits, as transformers' base models have no classifier."""
        output = self._output(pixels, states=any(layer != FINAL for layer in layers))
        states = output.get("hidden_states")
        return {one: output["last_hidden_state"] if one == FINAL else states[int(one)] for one in layers}, None

    def arranged(self, layer: str, pixels: Tensor) -> list[Tensor]:
        """See `Network`."""
        states = self._output(pixels, states=True).get("reshaped_hidden_states") or ()
        return [states[-1 if layer == FINAL else int(layer)]] if states else []

    def _output(self, pixels: Tensor, *, states: bool) -> Any:
        return self.model(pixel_values=pixels, output_hidden_states=states, return_dict=True, **self._options)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            "this backbone needs transformers", remedy="pip install 'featinv-fast[transformers]', or pass feature maps"
        ) from error
    return transformers


def _is_folder(place: str) -> bool:
    """Whether this is a folder, or can be none of the hub's names."""
    return Path(place).is_dir() or place.count("/") > 1 or place.startswith((".", "/", "~"))


def _create(transformers: Any, name: str, config: Any, weights: str | Path | None) -> Any:
    if is_random(weights):
        with seeded(weights):
            return _new(transformers, name, config)
    if weights is not None:
        return _from_file(_new(transformers, name, config), name, Path(weights))
    try:
        model, report = transformers.AutoModel.from_pretrained(
            name.removeprefix(_PREFIX), config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # hub clients raise their own network errors, files may say anything
        raise unobtainable(name, error) from error
    _require_all(name, name, report["missing_keys"])
    return _reading_images(name, model)


def _new(transformers: Any, name: str, config: Any) -> Any:
    try:
        model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    except Exception as error:  # configurations may say anything
        raise ArgumentError(
            "transformers cannot make this model",
            given=f"{name}: {type(error).__name__}: {str(error)[:300]}",
            expected="the configuration of a model that AutoModel makes",
            remedy="name another model, or one of your own as module:function",
        ) from error
    return _reading_images(name, model)


def _reading_images(name: str, model: Any) -> Any:
    if model.main_input_name != "pixel_values":
        raise ArgumentError(
            "this model reads other things than images",
            given=f"{name}: {model.main_input_name}",
            expected="a vision model",
            remedy="name another model, or one of your own as module:function",
        )
    return model


def _from_file(model: Any, name: str, path: Path) -> Any:
    """Load the weights of the model, or of one with a head, which has them under the model's own name."""
    state = read_state(path)
    prefix = f"{model.base_model_prefix}."
    below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if below and not set(below) <= set(state):
        state = below
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise unfit(name, path, error) from error
    _require_all(name, path, [*found.missing_keys, *found.unexpected_keys])
    return model


def _require_all(name: str, given: object, wrong: Sequence[str]) -> None:
    """Refuse weights that leave a tensor to chance, or hold others; those of heads have no part in a map."""
    wrong = sorted(key for key in wrong if not key.startswith(_HEADS))
    if wrong:
        raise unfit(name, given, f"{len(wrong)} tensors, such as {', '.join(wrong[:3])}")


def _processing(place: str) -> Mapping[str, Any]:
    """The published preprocessing; empty where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found: Mapping[str, Any] = ImageProcessingMixin.get_image_processor_dict(place)[0]
    except OSError:  # the configuration was found there a moment ago: there is no such file
        return {}
    return found


def _edge(size: Any) -> int | None:
    """A size of images as transformers writes it: a number, two, or names and numbers."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, tuple | list):
        size = size[0] if size else None
    return size if isinstance(size, int) else None


def _constants(processing: Mapping[str, Any]) -> tuple[Constants, Constants] | tuple[None, None]:
    """Mean and standard deviation of images in [0, 1]; None where the file does not say, or says something else."""
    if "image_mean" not in processing or processing.get("rescale_offset"):
        return None, None
    factor = 255 * processing.get("rescale_factor", 1 / 255) if processing.get("do_rescale", True) else 255.0
    factor = 1.0 if math.isclose(factor, 1) else factor
    normalised = processing.get("do_normalize", True)
    mean, std = (processing["image_mean"], processing["image_std"]) if normalised else ((0.0,) * 3, (1.0,) * 3)
    return _colour(mean, factor), _colour(std, factor)


def _colour(values: Sequence[float], factor: float) -> Constants:
    red, green, blue = (float(value) / factor for value in values)
    return red, green, blue
