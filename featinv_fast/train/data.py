"""Images for training: a small protocol, folders of images, and the synthetic world."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featinv_fast.errors import ArgumentError, TrainingError
from featinv_fast.features import center_crop, read_image
from featinv_fast.train.randomness import derived_seed
from featinv_fast.train.scan import Scan
from featinv_fast.train.selection import Selection, select
from featinv_fast.train.settings import SCENES, Crop, DataConfig, Split

if TYPE_CHECKING:
    from PIL import Image

# torchvision's defaults of RandomResizedCrop: share of the area, and width / height.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


class Data(Protocol):
    """Images by their indices, in any order and as often as one likes, always the same."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def batch(self, indices: np.ndarray) -> Mapping[str, np.ndarray]:
        """`images` uint8 [B, H, W, 3] and, where known, `labels` int64 [B]."""
        ...


class ImageFolder:
    """Images of a folder in squares. Draw n shows image `n % len` as pass `n // len` over the data sees it.

    Args:
        images: the images, see `selection.select`.
        size: edge of the squares in pixels. Smaller images are enlarged.
        crop: RANDOM for RandomResizedCrop (bilinear) and flips, keyed by `seed` and the draw; CENTER for the same
            pixels in every pass.
        flips: probabilities of a horizontal and a vertical flip.
        seed: of the crops.
        threads: that read images at the same time.
    """

    def __init__(
        self,
        images: Selection,
        *,
        size: int,
        crop: Crop = Crop.RANDOM,
        flips: tuple[float, float] = (0.5, 0.5),
        seed: int = 0,
        threads: int = 4,
    ) -> None:
        self.selection = images
        self.size = size
        self.crop = crop
        self.flips = flips
        self.seed = seed
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._labels = np.array(images.labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.selection.paths)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Read and cut the images of these draws.

        Raises:
            TrainingError: an image is gone, or is not what it was any more.
        """
        images = np.stack(list(self._pool.map(self._square, indices.tolist())))  # [B, size, size, 3]
        labels = {"labels": self._labels[indices % len(self)]} if self.selection.class_names else {}
        return {"images": images, **labels}

    def _square(self, draw: int) -> np.ndarray:
        number = draw % len(self)
        path = self.selection.paths[number]
        try:
            image = read_image(path) if self.selection.is_unchanged(number) else None
        except ArgumentError:
            image = None
        if image is None:
            raise TrainingError(
                "an image is not any more what it was when the run was started",
                given=path,
                expected="the same images all the time",
                remedy="bring it back and start again: the run goes on from its last checkpoint",
            )
        if self.crop is Crop.CENTER:
            return np.asarray(center_crop(image, self.size))
        return random_square(image, self.size, self.flips, np.random.default_rng(derived_seed(self.seed, "crop", draw)))


def random_square(image: Image.Image, size: int, flips: tuple[float, float], random: np.random.Generator) -> np.ndarray:
    """RandomResizedCrop to `size` pixels and random flips: uint8 [size, size, 3]."""
    from PIL import Image

    left, top, width, height = _random_box(*image.size, random)
    box = (left, top, left + width, top + height)
    # Cut first, as torchvision does: the resize must not look across the border.
    pixels = np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
    horizontal, vertical = random.random(2) < flips
    return np.ascontiguousarray(pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1])


def _random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop: area and log-ratio uniform, the largest central one if none fits."""
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(0, (width - w + 1, height - h + 1))
            return int(left), int(top), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def open_data(config: DataConfig, root: Path, *, records: Path | None = None, progress: bool = False) -> Data:
    """The data that `config` names.

    Args:
        config: what to take.
        root: what a folder's relative path starts from.
        records: folder in which to keep what was found out about images, for this and other runs.
        progress: show a bar on stderr while images are looked at.

    Raises:
        ArgumentError: there is no such folder, no image in it, or not so many; or there are no such scenes.
        TrainingError: images cannot be read.
    """
    if config.source == SCENES:
        # The synthetic world is not needed for images of one's own.
        from featinv_fast.demo.world.dataset import SceneDataset

        return SceneDataset(config.split or Split.TRAIN, length=config.count, size=config.size, seed=config.seed)
    folder = root / config.source
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    images = select(
        folder,
        split=config.split,
        holdout=config.holdout,
        count=config.count,
        seed=config.seed,
        on_unreadable=config.on_unreadable,
        scan=Scan(folder, None if records is None else records / f"images-{key}.jsonl", progress=progress),
    )
    return ImageFolder(images, size=config.size, crop=config.crop, flips=config.flips, seed=config.seed)


def open_held_out(config: DataConfig, root: Path, *, records: Path | None = None, progress: bool = False) -> Data:
    """What a training on `config` holds out for its validation, in the same pixels every time; see `open_data`."""
    held_out = dataclasses.replace(config, split=Split.VALIDATION, count=None, crop=Crop.CENTER)
    return open_data(held_out, root, records=records, progress=progress)


def repeats(data: Data) -> bool:
    """Whether every pass over the data shows the same pixels, so that what follows from them can be kept."""
    return not (isinstance(data, ImageFolder) and data.crop is Crop.RANDOM)


def batch_of(data: Data, draws: np.ndarray) -> Mapping[str, np.ndarray]:
    """The items of `draws` (see `randomness.draws`), checked."""
    batch = data.batch(draws if not repeats(data) else draws % len(data))
    images = batch["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[0] != len(draws) or images.shape[3] != 3:
        raise ArgumentError(
            "the data gave something else than images",
            given=f"{images.dtype} {list(images.shape)}",
            expected=f"uint8 [{len(draws)}, H, W, 3]",
            remedy="let `batch` of the data give these",
        )
    return batch


def identity(data: Data, config: DataConfig) -> dict[str, Any]:
    """What the pixels of `data` depend on, for the names of caches; a probe of the pixels tells changed code."""
    probe = np.linspace(0, len(data) - 1, min(len(data), 16)).astype(np.int64)
    pixels = {"probe": hashlib.sha256(data.batch(probe)["images"].tobytes()).hexdigest()}
    if isinstance(data, ImageFolder):
        return {"files": data.selection.sha256(), **pixels}
    split = str(config.split or Split.TRAIN)
    return {"source": config.source, "files": "", "count": len(data), "split": split, "seed": config.seed, **pixels}
