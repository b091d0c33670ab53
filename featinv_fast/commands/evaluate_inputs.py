"""What `featinv eval` evaluates on: a folder of images, or a file of maps that were made elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from featinv_fast.commands.evaluate_options import EvaluateOptions
from featinv_fast.commands.identity import inputs_below
from featinv_fast.config import AS_STORED, FeatureLayout, FeatureSpec, ImageReading
from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate import Example
from featinv_fast.features import (
    StoredFeatures,
    class_folders,
    list_images,
    normalise,
    read_image,
    require_same_features,
)
from featinv_fast.jobs.names import readable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """The true class of an input: its label, and its number among the backbone's and the judge's classes."""

    label: str | None = None
    target: int | None = None
    second_target: int | None = None


class Inputs(Protocol):
    """Inputs by their names."""

    @property
    def root(self) -> Path:
        """What names are relative to."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Of all, with / between folders."""
        ...

    def fingerprint(self) -> str:
        """Changes when they do."""
        ...

    def example(self, number: int) -> Example:
        """One of them, without name and labels.

        Raises:
            ArgumentError: it cannot be read.
        """
        ...


class ImagesIn:
    """The images of a folder, or one image.

    Args:
        folder: the folder.
        paths: of its images.
        reading: the choices in reading them.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], reading: ImageReading = AS_STORED) -> None:
        self.root = folder if folder.is_dir() else folder.parent
        self.names = [path.relative_to(self.root).as_posix() for path in paths]
        self._paths = paths
        self._reading = reading

    def fingerprint(self) -> str:
        """Of names, sizes and times of change of all files."""
        return _fingerprint(self.root, self._paths)

    def example(self, number: int) -> Example:
        """See `Inputs`."""
        return Example(image=read_image(self._paths[number], self._reading))


class MapsIn:
    """Rows of a feature file, called by its ids, or by their numbers.

    Args:
        path: of the file; see `StoredFeatures`.
        spec: what the engine takes.
        layout: of the maps, where nothing else tells.
        limit: so many rows, spread evenly.

    Raises:
        FeatInvError: the file cannot be read, or says that its maps are others.
    """

    def __init__(self, path: Path, spec: FeatureSpec, layout: str | None, limit: int | None) -> None:
        self._stored = StoredFeatures(path)
        if self._stored.spec is not None:
            require_same_features(self._stored.spec, spec, owner=str(path), taker="the engine")
            layout = self._stored.spec.layout if layout is None else layout
        self._spec, self._layout = spec, layout
        self._rows = spread(range(self._stored.shape[0]), limit)
        self.root = path.parent
        ids = self._stored.ids
        self.names = [f"{row:06d}" if ids is None else ids[row] for row in self._rows]

    def fingerprint(self) -> str:
        """Of the file's name, size and time of change."""
        return _fingerprint(self.root, [self._stored.path])

    def example(self, number: int) -> Example:
        """See `Inputs`."""
        row = self._stored.rows(np.array([self._rows[number]]))
        if self._spec.layout is FeatureLayout.POOLED and row.ndim == 2:
            return Example(features=row[0])
        return Example(features=normalise(row, self._spec, layout=self._layout)[0])


def inputs_of(options: EvaluateOptions, spec: FeatureSpec) -> Inputs:
    """The inputs that `options` name, for an engine that takes `spec`.

    Raises:
        FeatInvError: there are none, or not for this engine.
    """
    if options.features is not None:
        return MapsIn(options.features, spec, options.layout, options.limit)
    assert options.images is not None
    paths = inputs_below(options.images, list_images(options.images), options.out)
    return ImagesIn(options.images, spread(paths, options.limit), options.reading)


def folder_labels(inputs: Inputs) -> list[Labels]:
    """The folders that inputs lie in, where all do."""
    folders = class_folders(inputs.root, [inputs.root / name for name in inputs.names])
    return [Labels(label=folder) for folder in folders] if folders else [Labels()] * len(inputs.names)


def examples(
    inputs: Inputs, labels: Sequence[Labels], unreadable: dict[str, str], *, group_by_folder: bool
) -> Iterator[Example]:
    """Inputs with their labels; what cannot be read is noted in `unreadable` with the reason."""
    for number, (name, its) in enumerate(zip(inputs.names, labels, strict=True)):
        try:
            example = inputs.example(number)
        except ArgumentError as error:
            unreadable[readable(name)] = error.message(command_line=True)
            continue
        group = readable(PurePosixPath(name).parent.as_posix()) if group_by_folder else ""
        yield dataclasses.replace(example, name=readable(name), group=group, **dataclasses.asdict(its))


def spread(given: Sequence, limit: int | None) -> list:
    """So many of a sequence, spread evenly."""
    count = len(given) if limit is None else min(limit, len(given))
    return [given[i * len(given) // count] for i in range(count)]


def _fingerprint(root: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with contextlib.suppress(OSError):  # of a file that is gone, the name alone
            status = path.stat()
            digest.update(f"{status.st_size}:{status.st_mtime_ns}:".encode())
        digest.update(os.fsencode(path.relative_to(root)) + b"\0")
    return digest.hexdigest()
