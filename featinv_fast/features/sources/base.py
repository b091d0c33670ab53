"""What a backbone asks of a vision model, whichever library it comes from."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from featinv_fast.checks import did_you_mean
from featinv_fast.config import FINAL
from featinv_fast.errors import ArgumentError
from featinv_fast.features.module_paths import Seen, Taps, survey
from featinv_fast.features.normalisation import Constants
from featinv_fast.features.weights import within

# What one pass gives: maps by their layers, and class logits [B, K].
Pass = tuple[dict[str, Tensor], Tensor | None]


class Source(Protocol):
    """A library of vision models."""

    @property
    def words(self) -> str:
        """How its names look, for messages."""
        ...

    @property
    def runs_code(self) -> bool:
        """Whether opening a network runs code that its name points to."""
        ...

    def serves(self, name: str) -> bool:
        """Whether a name has the form of this source's names."""
        ...

    def is_place(self, name: str) -> bool:
        """Whether a name says where a network lies and not which one it is: it may lie elsewhere, too."""
        ...

    def open(self, name: str, weights: str | Path | None, size: int | None) -> Network:
        """A network on the CPU.

        Args:
            name: one that it serves.
            weights: see `Backbone`.
            size: edge in pixels of the images; None is what the network was published with.

        Raises:
            MissingPackageError: the library is not installed.
            ArgumentError: no such network, a size that it cannot take, a bad seed.
            CheckpointError: the weights cannot be obtained, read or fitted.
        """
        ...


class Network(abc.ABC):
    """A vision model, opened.

    Args:
        name: what it was opened by.
        model: the module; it is frozen and set to evaluation mode.
        size: edge in pixels of its images; None where nobody says.
        mean: RGB mean of the normalisation that it was published with, in [0, 1]; None where nobody says.
        std: the standard deviation, likewise.
        heads: names of the modules that only read its maps, such as the classifier.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        *,
        size: int | None,
        mean: Constants | None,
        std: Constants | None,
        heads: Sequence[str],
    ) -> None:
        self.name = name
        self.model: Any = model.eval().requires_grad_(requires_grad=False)
        self.size, self.mean, self.std, self.heads = size, mean, std, tuple(heads)
        self.seen: tuple[Seen, ...] = ()

    @property
    def counted(self) -> tuple[str, ...]:
        """The layers that the library itself gives: "final", and "0", "1", ... of stages. All others are modules."""
        return ()

    @abc.abstractmethod
    def forward(self, pixels: Tensor, layers: Sequence[str], *, logits: bool) -> Pass:
        """One pass: the maps of `layers`, which are all `counted`, and the logits where they are wanted and known.

        Without layers it runs the whole model, at whose modules somebody looks.
        """

    def arranged(self, layer: str, pixels: Tensor) -> list[Tensor]:  # noqa: ARG002 -- for libraries that do
        """What the library itself makes of a `counted` layer as [B, C, H, W]: in no, one or several ways."""
        return []

    def possible_sizes(self, size: int) -> list[int]:
        """Sizes of images near `size` that the network can take, as far as they are known."""
        return [] if self.size in (None, size) else [self.size or size]

    def read(
        self, pixels: Tensor, layers: Sequence[str], *, logits: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """The maps of `layers` as the model lays them out, from one pass that ends where nothing more is needed.

        Args:
            pixels: [B, 3, S, S], normalised.
            layers: `counted` ones, or those that `look` has seen give maps.
            logits: whether the class logits [B, K] are wanted; they are None for a model without a classifier.
        """
        counted = [layer for layer in dict.fromkeys(layers) if layer in self.counted]
        paths = {layer: self.path(layer) for layer in layers if layer not in counted}
        taps = Taps(self.model, paths.values(), stop=bool(paths) and not counted and not logits)
        maps, classes = taps.run(lambda: self.forward(pixels, counted, logits=logits)) or ({}, None)
        maps |= {layer: taps.output(path) for layer, path in paths.items()}
        return [maps[layer] for layer in layers], classes

    def look(self, pixels: Tensor) -> None:
        """Look at all modules in a whole pass: what is `seen` then."""
        self.seen = survey(self.model, lambda: self.forward(pixels, [], logits=True))

    def path(self, layer: str) -> str:
        """The module that gives a layer which is not `counted`; "final" is the last map that a module gives.

        Raises:
            ArgumentError: no module of this path runs once and gives a map.
        """
        maps = [seen.path for seen in self.seen if seen.gives_map]
        if layer in maps:
            return layer
        before_heads = [path for path in maps if not within(path, self.heads)]
        if layer == FINAL and before_heads:
            return before_heads[-1]
        raise self._no_layer(layer, maps)

    def _no_layer(self, layer: str, maps: Sequence[str]) -> ArgumentError:
        seen = {one.path: one for one in self.seen}.get(layer)
        known = [path for path, _ in self.model.named_modules(remove_duplicate=False)]
        if seen is not None:
            reason = f"it runs {seen.runs} times in a pass" if seen.runs > 1 else f"it gives {list(seen.shape)}"
        else:
            reason = "it does not run by itself" if layer in known else "there is no such module"
        near = did_you_mean(layer, [*self.counted, *maps])
        return ArgumentError(
            "the backbone has no such layer",
            given=f"{layer!r} of {self.name}: {reason}",
            expected=f"{_listed(self.counted)}the path of a module that runs once in a pass and gives a map",
            remedy=(f"did you mean {near}? " if near else "")
            + f"`featinv features --backbone {self.name} --layers` lists all",
        )


class PlainNetwork(Network):
    """A model of which only its modules are known, and that it gives class logits, if they are [B, K]."""

    def forward(self, pixels: Tensor, layers: Sequence[str], *, logits: bool) -> Pass:
        """See `Network`."""
        assert not layers, "it counts none"
        output = self.model(pixels)
        return {}, output if logits and isinstance(output, Tensor) and output.ndim == 2 else None


def _listed(counted: Sequence[str]) -> str:
    stages = [layer for layer in counted if layer != FINAL]
    names = [FINAL] * (FINAL in counted) + ([f"{stages[0]} to {stages[-1]}"] if stages else [])
    return "".join(f"{name}, " for name in names)


def impossible_size(name: str, size: int, error: Exception, possible: Sequence[int]) -> ArgumentError:
    """The refusal of images of `size` pixels, on which a network failed with `error`; `possible` are sizes to name."""
    reason = str(error).strip() or type(error).__name__
    return ArgumentError(
        f"the backbone {name} cannot take images of this size",
        given=f"{size} pixels: {reason.splitlines()[0]}",
        expected=f"{' or '.join(map(str, possible))} pixels" if possible else "the size that the model was made for",
        remedy="state one of these as the backbone's input_size" if possible else "leave input_size out",
        command_remedy="state one of these with --image-size, or as input_size in a recipe"
        if possible
        else "leave out --image-size, or input_size in a recipe",
    )
