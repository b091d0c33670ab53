"""Strict recipes: which tensor of a layout becomes which tensor of ours.

A `Layout` describes a family of checkpoints, a `Recipe` is that layout for one architecture. The same recipe serves
reading and writing. Reading accounts for every tensor: it is mapped, or ignored for a stated reason, or an error.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from featinv_fast.checkpoints.architecture import PROMPTS, TEXT_ENCODER, Shape, Shapes, model_shapes
from featinv_fast.checkpoints.known import resemblance
from featinv_fast.checkpoints.listing import listed
from featinv_fast.checkpoints.reader import Raw
from featinv_fast.checkpoints.wrappers import renamed
from featinv_fast.config import ModelConfig
from featinv_fast.errors import CheckpointMismatchError

logger = logging.getLogger(__name__)

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A family of checkpoints.

    Attributes:
        name: as `featinv convert --to` spells it.
        signature: key prefixes that every checkpoint of this layout has and no other layout has all of.
        landmarks: the tensors that tell the architecture, their shapes under our names.
        modules: our module names to this layout's, for an architecture. It may name modules that do not exist.
        text_encoder: prefix of the text encoder's tensors.
        aliases: (pattern of whole keys, the name that this layout has for it), for names that other versions write.
        ignored: (pattern of whole keys, why they are not needed).
        pointwise: pattern of our linear layers that this layout keeps as 1x1 convolutions.
        constants: tensors that carry no information but that readers of this layout insist on.
        complete: adds to a configuration what this layout tells in other ways than by shapes.
        check: refuses what contradicts the configuration outside of the recipe.
    """

    name: str
    signature: tuple[str, ...]
    landmarks: Callable[[Shapes], dict[str, Shape]]
    modules: Callable[[ModelConfig], dict[str, str]]
    text_encoder: str
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    pointwise: str = r"(?!)"  # matches nothing
    constants: Callable[[ModelConfig], dict[str, Tensor]] = lambda _: {}
    complete: Callable[[ModelConfig, Raw], ModelConfig] = lambda config, _: config
    check: Callable[[ModelConfig, Raw], None] = lambda *_: None

    def source_name(self, modules: Mapping[str, str], name: str) -> str:
        """This layout's name of our tensor `name`, given what `modules` returned."""
        if name in PROMPTS:
            return name
        if name.startswith(TEXT_ENCODER):
            return self.text_encoder + name.removeprefix(TEXT_ENCODER)
        module, _, parameter = name.rpartition(".")
        return f"{modules[module]}.{parameter}"

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint under this layout's names.

        Raises:
            CheckpointMismatchError: a tensor is there under two names.
        """
        names = {}
        for name in tensors:
            names[name] = name
            for pattern, replacement in self.aliases:
                names[name] = re.sub(f"^{pattern}$", replacement, names[name])
        return renamed(tensors, names)

    def recognises(self, keys: Iterable[str]) -> bool:
        """Whether checkpoints with these keys are of this layout."""
        keys = list(keys)
        return all(any(key.startswith(prefix) for key in keys) for prefix in self.signature)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a layout keeps one of our tensors, and in which shape."""

    name: str
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A layout for one architecture: our tensor names and shapes, and where that layout keeps each of them."""

    layout: Layout
    shapes: Shapes
    sources: Mapping[str, Source]
    constants: Mapping[str, Tensor]

    @classmethod
    def make(cls, layout: Layout, config: ModelConfig, extras: Shapes | None = None) -> Self:
        """The recipe for `config`; `extras` are shapes of stored prompts and of a text encoder, under our names."""
        shapes = {**model_shapes(config), **(extras or {})}
        modules = layout.modules(config)
        pointwise = re.compile(layout.pointwise)
        sources = {}
        for name, shape in shapes.items():
            if len(shape) == 2 and pointwise.fullmatch(name):
                shape = (*shape, 1, 1)
            sources[name] = Source(layout.source_name(modules, name), shape)
        return cls(layout, shapes, sources, layout.constants(config))

    def part(self, prefix: str | tuple[str, ...]) -> Self:
        """The recipe for those of our tensors whose names start with `prefix` (or one of them), without constants."""
        shapes = {name: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return dataclasses.replace(
            self, shapes=shapes, sources={name: self.sources[name] for name in shapes}, constants={}
        )

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors from those of a checkpoint: views, nothing is copied.

        Raises:
            CheckpointMismatchError: a tensor is missing, unexpected, of the wrong shape or not floating point.
        """
        wanted = {source.name: source.shape for source in self.sources.values()}
        missing = [name for name in (*wanted, *self.constants) if name not in tensors]
        unexpected = self._unexpected(tensors)
        wrong = [
            f"{name} (given {list(t.shape)} {_dtype(t)}, expected {list(wanted[name])} floating point)"
            for name, t in tensors.items()
            if name in wanted and (tuple(t.shape) != wanted[name] or t.dtype not in FLOATS)
        ]
        wrong += [
            f"{name} (not the constant that this layout has there)"
            for name, constant in self.constants.items()
            if name in tensors and not _same(tensors[name], constant)
        ]
        if missing or unexpected or wrong:
            raise CheckpointMismatchError(
                f"the checkpoint does not fit the layout '{self.layout.name}'",
                given="; ".join(
                    _listing(kind, names)
                    for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong", wrong))
                    if names
                ),
                expected=f"{len(wanted)} tensors; these resemble {resemblance(tensors)}",
                remedy="check that the file is complete, and remove tensors that do not belong to the model",
            )
        return {name: tensors[source.name].reshape(self.shapes[name]) for name, source in self.sources.items()}

    def write(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This layout's tensors from ours, the constants included."""
        written = {source.name: tensors[name].reshape(source.shape) for name, source in self.sources.items()}
        dtype = tensors["denoiser.unet.encoder.conv_in.weight"].dtype
        return written | {name: constant.to(dtype) for name, constant in self.constants.items()}

    def _unexpected(self, tensors: Mapping[str, Tensor]) -> list[str]:
        known = {source.name for source in self.sources.values()} | set(self.constants)
        ignored: dict[str, int] = {}
        unexpected = []
        for name in tensors:
            if name in known:
                continue
            reason = next((why for pattern, why in self.layout.ignored if re.fullmatch(pattern, name)), None)
            if reason is None:
                unexpected.append(name)
            else:
                ignored[reason] = ignored.get(reason, 0) + 1
        for reason, count in ignored.items():
            logger.info("ignored %d tensors: %s", count, reason)
        return unexpected


def nested(ours: str, theirs: str, table: Mapping[str, str]) -> dict[str, str]:
    """The rows of `table` (our child to theirs) under the parents `ours` and `theirs`."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in table.items()}


def _same(tensor: Tensor, constant: Tensor) -> bool:
    return tensor.shape == constant.shape and torch.equal(tensor.to(constant.dtype), constant)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listing(kind: str, names: list[str]) -> str:
    return f"{len(names)} {kind}: {listed(names)}"
