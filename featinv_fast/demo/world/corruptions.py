"""Corruptions of images at five severities, after Hendrycks and Dietterich (arXiv 1903.12261).

The parameters are those of the authors' own 64-pixel variant of the benchmark (ImageNet-64x64-C). At another size the
width of the blur grows with the image; the other three do not depend on it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import numpy as np

from featinv_fast.checks import choice
from featinv_fast.demo.world.random_numbers import stream_keys
from featinv_fast.errors import ArgumentError, ArgumentTypeError

SEVERITIES = (1, 2, 3, 4, 5)

_STREAM = 3  # after those of the three splits


class Corruption(enum.StrEnum):
    """The kinds, each with its parameter for severities 1 to 5 in `CORRUPTION_PARAMETERS`."""

    GAUSSIAN_NOISE = "gaussian_noise"
    GAUSSIAN_BLUR = "gaussian_blur"
    CONTRAST = "contrast"
    PIXELATE = "pixelate"


CORRUPTION_PARAMETERS = {
    Corruption.GAUSSIAN_NOISE: (0.04, 0.08, 0.12, 0.15, 0.18),  # standard deviation, of a range of 1
    Corruption.GAUSSIAN_BLUR: (0.5, 0.75, 1.0, 1.25, 1.5),  # standard deviation in pixels of a 64-pixel image
    Corruption.CONTRAST: (0.4, 0.3, 0.2, 0.1, 0.05),  # remaining contrast about each channel's mean
    Corruption.PIXELATE: (0.9, 0.8, 0.7, 0.6, 0.5),  # edge of the coarse image in edges of the fine one
}


def corrupt(
    images: np.ndarray,
    corruption: Corruption | str,
    severity: int,
    *,
    seed: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Corrupted copies of images.

    Noise comes from the seed and each image's number, so it does not depend on the batch; severities share it.

    Args:
        images: uint8 [B, H, W, 3].
        corruption: the kind.
        severity: 1 (slight) to 5.
        seed: of the noise, 0 to 2**22 - 1.
        indices: the images' numbers [B], 0 to 2**40 - 1; `None` counts from 0.

    Returns:
        uint8 [B, H, W, 3].

    Raises:
        ArgumentError: an unknown kind or severity, a seed or number outside its range, or too few or many numbers.
        ArgumentTypeError: no uint8 array of RGB images, or numbers that are no integers.
    """
    kind = _checked_kind(corruption)
    if severity not in SEVERITIES:
        raise ArgumentError("unknown severity", given=repr(severity), expected="1 to 5", remedy="choose one of these")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        given = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ArgumentTypeError(
            "these are no images",
            given=given,
            expected="a numpy array, uint8 [B, H, W, 3]",
            remedy="convert them, with numpy.stack where they are several arrays",
        )
    keys = stream_keys(_STREAM, seed, np.arange(len(images)) if indices is None else indices)
    if len(keys) != len(images):
        raise ArgumentError(
            "each image needs its number",
            given=f"{len(keys)} indices",
            expected=f"{len(images)} indices",
            remedy="pass one for each image, or leave them out to count from 0",
        )

    parameter = CORRUPTION_PARAMETERS[kind][severity - 1]
    unit = images.astype(np.float32) / 255.0
    match kind:
        case Corruption.GAUSSIAN_NOISE:
            unit += parameter * _normal_noise(keys, images.shape[1:])
        case Corruption.GAUSSIAN_BLUR:
            unit = _along_both_axes(unit, *(_blur_matrix(edge, parameter * edge / 64) for edge in images.shape[1:3]))
        case Corruption.CONTRAST:
            means = unit.mean(axis=(1, 2), keepdims=True)
            unit = (unit - means) * parameter + means
        case Corruption.PIXELATE:
            unit = _along_both_axes(unit, *(_pixelate_matrix(edge, parameter) for edge in images.shape[1:3]))
    return np.clip(unit * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)


def _normal_noise(keys: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal, float32 [B, *shape]."""
    noise = np.empty((len(keys), *shape), dtype=np.float32)
    for row, key in enumerate(keys):
        generator = np.random.Generator(np.random.Philox(key=int(key)))
        generator.standard_normal(dtype=np.float32, out=noise[row])
    return noise


def _along_both_axes(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`rows` [H, H] applied along the height and `columns` [W, W] along the width of [B, H, W, 3]."""
    return np.einsum("ij,bjkc,lk->bilc", rows, images, columns, optimize=True)


def _blur_matrix(edge: int, sigma: float) -> np.ndarray:
    """A Gaussian cut at four sigma, borders repeated, float32 [edge, edge]; rows add up to 1."""
    reach = math.ceil(4.0 * sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((edge, edge))
    for row in range(edge):
        np.add.at(matrix[row], np.clip(row + offsets, 0, edge - 1), weights)
    return (matrix / weights.sum()).astype(np.float32)


def _pixelate_matrix(edge: int, share: float) -> np.ndarray:
    """Area averages down to `share` of the edge and back up, float32 [edge, edge]; rows add up to 1."""
    down = _area_matrix(edge, int(edge * share))
    return (_area_matrix(len(down), edge) @ down).astype(np.float32)


def _area_matrix(source: int, target: int) -> np.ndarray:
    """Each of the `target` cells as the mean of the source cells it overlaps, [target, source]."""
    start = np.arange(target)[:, None] * (source / target)
    cells = np.arange(source)
    overlap = np.clip(np.minimum(start + source / target, cells + 1) - np.maximum(start, cells), 0.0, None)
    return overlap / overlap.sum(axis=1, keepdims=True)


def _checked_kind(corruption: Corruption | str) -> Corruption:
    return choice("the corruption", corruption, Corruption)
