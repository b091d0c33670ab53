"""Where `featinv invert` takes feature maps from: a file of them, or images that a backbone looks at."""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ArgumentError, FeatInvError
from featinv_fast.features import (
    AS_STORED,
    Backbone,
    ImageReading,
    StoredFeatures,
    center_crop,
    normalise,
    read_image,
    require_same_features,
)
from featinv_fast.features.folders import IMAGE_SUFFIXES
from featinv_fast.jobs.names import readable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some consecutive items.

    Attributes:
        places: of the items that have a feature map.
        maps: of these, one after the other, as one array that `Runtime.invert` takes.
        errors: place -> why the item has no feature map.
        layout: of the maps.
    """

    places: Sequence[int]
    maps: Any
    errors: Mapping[int, FeatInvError]
    layout: FeatureLayout | str | None


class Source(Protocol):
    """Items in an order that does not change while they are inverted; a place is a number in it."""

    @property
    def items(self) -> Sequence[str]:
        """What each item is called where it comes from, all different."""
        ...

    def wished_stem(self, place: int) -> str:
        """What the item's images would best be called, without suffix."""
        ...

    def place(self, place: int) -> int | str:
        """What messages call the item."""
        ...

    def read(self, places: range) -> Chunk:
        """The feature maps of these items; the same places always together give the same bits."""
        ...

    def stamp(self, place: int) -> list[int]:
        """Size and time of change of the file that the item is in."""
        ...

    def digest(self, place: int) -> int:
        """A checksum of the item's content."""
        ...


class MapsInFile:
    """The maps of a file, called by its ids, or by their number where it has none or two of the same.

    Args:
        path: see `StoredFeatures`.
        spec: what the engine takes.
        layout: of the maps, where their shape does not tell.

    Raises:
        FeatInvError: the file cannot be read, holds something else, or says that its maps are others.
    """

    def __init__(self, path: Path, spec: FeatureSpec, layout: str | None) -> None:
        stored = StoredFeatures(path)
        maps: Any = stored.whole()
        if stored.spec is not None:
            require_same_features(stored.spec, spec, owner=str(path), taker="the engine")
            layout = stored.spec.layout if layout is None else layout
        self._layout: FeatureLayout | str | None = layout
        if maps.ndim != 4:
            maps, self._layout = normalise(maps, spec, layout=layout), FeatureLayout.NCHW
        self._maps = maps
        self._stamp = _stamp(path)
        ids = stored.ids if stored.ids is not None and len(set(stored.ids)) == len(stored.ids) else None
        self.items: Sequence[str] = [f"{row:06d}" for row in range(len(maps))] if ids is None else ids
        self._stems = _Stems(self.items)
        self._named = ids is not None

    def wished_stem(self, place: int) -> str:
        """As of an image with this id; or the number."""
        return self._stems[place]

    def place(self, place: int) -> int | str:
        """The id; or its place in the file."""
        return readable(self.items[place]) if self._named else place

    def read(self, places: range) -> Chunk:
        """See `Source`."""
        return Chunk(places=places, maps=self._maps[places.start : places.stop], errors={}, layout=self._layout)

    def stamp(self, place: int) -> list[int]:  # noqa: ARG002 -- one file for all
        """See `Source`."""
        return self._stamp

    def digest(self, place: int) -> int:
        """See `Source`."""
        one = self._maps[place]
        values = one.contiguous().view(torch.uint8).numpy() if isinstance(one, torch.Tensor) else one
        return zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data)


class ImagesInFolder:
    """The maps of images, called by their paths.

    Args:
        root: the folder, or the one image.
        paths: of the images.
        backbone: computes their maps.
        reading: the choices in reading them.

    Raises:
        FeatInvError: there are no images.
    """

    def __init__(
        self, root: Path, paths: Sequence[Path], backbone: Backbone, reading: ImageReading = AS_STORED
    ) -> None:
        root = root if root.is_dir() else root.parent
        self._paths = paths
        self._backbone = backbone
        self._reading = reading
        self.items = [path.relative_to(root).as_posix() for path in paths]
        self._stems = _Stems(self.items)

    def wished_stem(self, place: int) -> str:
        """The path in one piece."""
        return self._stems[place]

    def place(self, place: int) -> str:
        """The image's path."""
        return readable(self.items[place])

    def read(self, places: range) -> Chunk:
        """See `Source`; an image that cannot be read has an error."""
        images: dict[int, Image.Image] = {}
        errors: dict[int, FeatInvError] = {}
        for place in places:
            try:
                images[place] = center_crop(read_image(self._paths[place], self._reading), self._backbone.input_size)
            except ArgumentError as error:
                errors[place] = error
        maps = torch.cat(list(self._backbone.extract(images.values()))) if images else None
        return Chunk(places=list(images), maps=maps, errors=errors, layout=self._backbone.spec.layout)

    def stamp(self, place: int) -> list[int]:
        """See `Source`; of a file that is gone, nothing."""
        try:
            return _stamp(self._paths[place])
        except OSError:
            return []

    def digest(self, place: int) -> int:
        """See `Source`; of a file that cannot be read, that of nothing."""
        try:
            return zlib.crc32(self._paths[place].read_bytes())
        except OSError:
            return 0


class _Stems:
    """Of paths, in one piece: "cats__1" of "cats/1.jpg", and "cats__1.jpg" where there is a "cats/1.png", too."""

    def __init__(self, items: Sequence[str]) -> None:
        self._items = items
        self._times = collections.Counter(map(_without_suffix, items))

    def __getitem__(self, place: int) -> str:
        stem = _without_suffix(self._items[place])
        return (stem if self._times[stem] == 1 else self._items[place]).replace("/", "__")


def _without_suffix(item: str) -> str:
    path = PurePosixPath(item)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else item


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
