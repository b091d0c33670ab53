"""torchvision's classification models: `torchvision:NAME`."""

from __future__ import annotations

import collections
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from featinv_fast.checks import did_you_mean
from featinv_fast.errors import ArgumentError, MissingPackageError
from featinv_fast.features.sources.base import Network, PlainNetwork
from featinv_fast.features.sources.weight_files import is_random, read_state, seeded, unfit, unobtainable

_PREFIX = "torchvision:"
# What torchvision calls the parts behind the map in its models, ...
_CLASSIFIERS = ("classifier", "fc", "head", "heads")
# ... and those that only training uses.
_HEADS = (*_CLASSIFIERS, "AuxLogits", "aux1", "aux2")
# They bring images from the normalisation that all of torchvision has to that of their published weights.
_RENORMALISING = ("googlenet", "inception_v3")


class Torchvision:
    """See `Source`."""

    words = "torchvision:NAME"
    runs_code = False

    def serves(self, name: str) -> bool:
        """See `Source`."""
        return name.startswith(_PREFIX)

    def is_place(self, name: str) -> bool:  # noqa: ARG002 -- they are all names
        """See `Source`."""
        return False

    def open(self, name: str, weights: str | Path | None, size: int | None) -> Network:
        """See `Source`."""
        models = _models()
        short = name.removeprefix(_PREFIX)
        known = models.list_models(module=models)
        if short not in known:
            near = did_you_mean(short, known)
            raise ArgumentError(
                "unknown backbone",
                given=name,
                expected="the name of a classification model of torchvision",
                remedy=f"did you mean {_PREFIX}{near}?" if near else "see torchvision.models.list_models()",
            )
        published = models.get_model_weights(short).DEFAULT
        transforms = published.transforms()
        own = transforms.crop_size[0]
        size = own if size is None else size
        options = _for_size(short, size) if size != own else {}
        if short in _RENORMALISING:
            options["transform_input"] = True
        model = _create(name, functools.partial(models.get_model, short, weights=None, **options), weights, published)
        mean, std = tuple(transforms.mean), tuple(transforms.std)
        return PlainNetwork(name, model, size=size, mean=mean, std=std, heads=_HEADS)


def _models() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingPackageError(
            "this backbone needs torchvision", remedy="pip install 'featinv-fast[torchvision]', or pass feature maps"
        ) from error
    return models


def _for_size(short: str, size: int) -> dict[str, Any]:
    """Arguments of models that are made for images of one size."""
    if short.startswith("vit_"):
        return {"image_size": size}
    return {"input_size": (size, size)} if short.startswith("maxvit") else {}


def _create(name: str, make: Callable[..., Any], weights: str | Path | None, published: Any) -> Any:
    with warnings.catch_warnings():
        # Two models remark on how they will draw their first weights one day.
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        if is_random(weights):
            with seeded(weights):
                return make()
        if weights is not None:
            state = read_state(Path(weights))
        else:
            try:
                state = published.get_state_dict(progress=True, check_hash=True)
            except Exception as error:  # downloads fail in any way
                raise unobtainable(name, error) from error
        model = make()
        classes = _last_weight(model)
        if classes in state and len(state[classes]) != len(model.get_parameter(classes)):
            model = make(num_classes=len(state[classes]))
        try:
            model.load_state_dict(_interpolated(model, state))
        except Exception as error:  # the interpolation may trip over a foreign file in any way
            raise unfit(name, "the published weights" if weights is None else weights, error) from error
    return model


def _last_weight(model: Any) -> str:
    """The name of the weight whose rows are the classes."""
    heads = [name for name, value in model.named_parameters() if name.startswith(_CLASSIFIERS) and value.ndim > 1]
    return str(heads[-1])


def _interpolated(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a ViT for the size of images that `model` is made for."""
    own = getattr(model, "image_size", None)
    if own is None or state["encoder.pos_embedding"].shape == model.encoder.pos_embedding.shape:
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    return dict(interpolate_embeddings(own, model.patch_size, collections.OrderedDict(state)))
