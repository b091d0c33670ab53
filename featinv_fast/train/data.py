"""Images for training: a small protocol, folders of images, and the synthetic world."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featinv_fast.errors import ArgumentError
from featinv_fast.features import center_crop, list_images, read_image
from featinv_fast.train.randomness import derived_seed
from featinv_fast.train.settings import SCENES, Crop, DataConfig

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
    """The images below a folder, in squares. Draw n shows image `n % len` as pass `n // len` over the data sees it.

    Args:
        folder: see `features.list_images`. Sub-folders that hold all images are their classes, in alphabetical order.
        size: edge of the squares in pixels.
        crop: RANDOM for RandomResizedCrop (bilinear) and flips, keyed by `seed` and the draw; CENTER for the same
            pixels in every pass.
        flips: probabilities of a horizontal and a vertical flip.
        count: the first so many images only.
        seed: of the crops.
        threads: that read images at the same time.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int,
        crop: Crop = Crop.RANDOM,
        flips: tuple[float, float] = (0.5, 0.5),
        count: int | None = None,
        seed: int = 0,
        threads: int = 4,
    ) -> None:
        root = Path(folder)
        self.paths = list_images(root)[:count]
        self.size = size
        self.crop = crop
        self.flips = flips
        self.seed = seed
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        parents = [path.relative_to(root).parts[0] if path.parent != root else None for path in self.paths]
        names = sorted({parent for parent in parents if parent is not None})
        # Labels exist where every image lies in the folder of its class.
        self.class_names = () if None in parents else tuple(names)
        self._labels = np.array([names.index(parent) for parent in parents if parent is not None], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Read and cut the images of these draws."""
        images = np.stack(list(self._pool.map(self._square, indices.tolist())))  # [B, size, size, 3]
        labels = {"labels": self._labels[indices % len(self)]} if self.class_names else {}
        return {"images": images, **labels}

    def identity(self) -> str:
        """Changes when the images do: names, sizes and times of change of all files."""
        parts = [f"{path}:{(stat := path.stat()).st_size}:{stat.st_mtime_ns}" for path in self.paths]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _square(self, draw: int) -> np.ndarray:
        image = read_image(self.paths[draw % len(self)])
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


def open_data(config: DataConfig, root: Path) -> Data:
    """The data that `config` names; folders are relative to `root`.

    Raises:
        ArgumentError: there is no such folder, or no image in it; or there are no such scenes.
    """
    if config.source == SCENES:
        # The synthetic world is not needed for images of one's own.
        from featinv_fast.demo.world.dataset import SceneDataset

        return SceneDataset(config.split, length=config.count, size=config.size, seed=config.seed)
    return ImageFolder(
        root / config.source,
        size=config.size,
        crop=config.crop,
        flips=config.flips,
        count=config.count,
        seed=config.seed,
    )


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
        )
    return batch


def identity(data: Data, config: DataConfig) -> dict[str, Any]:
    """What the pixels of `data` depend on, for the names of caches; a probe of the pixels tells changed code."""
    files = data.identity() if isinstance(data, ImageFolder) else ""
    probe = np.linspace(0, len(data) - 1, min(len(data), 16)).astype(np.int64)
    return {
        "source": config.source,
        "files": files,
        "count": len(data),
        "split": config.split,
        "seed": config.seed,
        "probe": hashlib.sha256(data.batch(probe)["images"].tobytes()).hexdigest(),
    }
