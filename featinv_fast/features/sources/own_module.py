"""A network of the user's own: `module:function`, a function that returns an `nn.Module`."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from featinv_fast.errors import ArgumentError, ArgumentTypeError, FeatInvError
from featinv_fast.features.normalisation import Constants
from featinv_fast.features.sources.base import Network, PlainNetwork
from featinv_fast.features.sources.timm_ import TimmNetwork, evaluation_size
from featinv_fast.features.sources.weight_files import is_random, read_state, seeded, unfit


class OwnModule:
    """See `Source`. The function is called without arguments.

    What it returns says by attributes how its images are made: `input_size` (pixels), `mean` and `std` (RGB, of images
    in [0, 1]), or as timm's models do by `pretrained_cfg`.
    """

    words = "module:function of your own that returns an nn.Module"
    runs_code = True

    def serves(self, name: str) -> bool:
        """See `Source`."""
        return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name) is not None

    def is_place(self, name: str) -> bool:  # noqa: ARG002 -- the same name is the same function
        """See `Source`."""
        return False

    def open(self, name: str, weights: str | Path | None, size: int | None) -> Network:
        """See `Source`."""
        with seeded(weights) if is_random(weights) else contextlib.nullcontext():
            model = _made(name)
        if weights is not None and not is_random(weights):
            try:
                model.load_state_dict(read_state(Path(weights)))
            except RuntimeError as error:
                raise unfit(name, weights, error) from error
        published = getattr(model, "pretrained_cfg", None)
        if hasattr(model, "forward_intermediates") and isinstance(published, Mapping):
            return TimmNetwork(name, model, size=evaluation_size(published) if size is None else size)
        own, mean, std = (getattr(model, attribute, None) for attribute in ("input_size", "mean", "std"))
        return PlainNetwork(
            name,
            model,
            size=size or (own if isinstance(own, int) else None),
            mean=_constant(name, "mean", mean),
            std=_constant(name, "std", std),
            heads=(),
        )


def _made(name: str) -> torch.nn.Module:
    """What the function returns; its module may lie in the working directory."""
    module, _, function = name.partition(":")
    with _working_directory():
        try:
            make = getattr(importlib.import_module(module), function)
            model = make()
        except FeatInvError:
            raise
        except Exception as error:  # the code is anybody's
            raise ArgumentError(
                "the backbone's function cannot be called",
                given=f"{name}: {type(error).__name__}: {error}",
                expected="a function without arguments, in a module of this environment or of the working directory",
                remedy=f"try it in Python: from {module} import {function}; {function}()",
            ) from error
    if not isinstance(model, torch.nn.Module):
        raise ArgumentTypeError(
            "the backbone's function returns no network",
            given=f"{name}: {type(model).__name__}",
            expected="a torch.nn.Module",
            remedy="return the network",
        )
    return model


def _constant(name: str, attribute: str, value: Any) -> Constants | None:
    """Three numbers. A tensor is none: networks that normalise images themselves keep their constants so."""
    if value is None or isinstance(value, torch.Tensor):
        return None
    if not isinstance(value, tuple | list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise ArgumentError(
            f"the backbone's attribute {attribute} is no colour",
            given=f"{name}: {value!r}",
            expected=f"three numbers, such as {attribute} = (0.5, 0.5, 0.5)",
            remedy="correct it where the function makes the network",
        )
    return float(value[0]), float(value[1]), float(value[2])


@contextlib.contextmanager
def _working_directory() -> Iterator[None]:
    """Modules of the working directory can be imported where no installed one is called so."""
    place = str(Path.cwd())
    if place in sys.path:
        yield
        return
    sys.path.append(place)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the function may have removed it
            sys.path.remove(place)
