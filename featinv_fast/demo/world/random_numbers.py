"""Counter-based random numbers: those of item i depend on what they are for, the seed and i alone.

Everything here is integer arithmetic or a single correctly rounded operation, so the numbers are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from featinv_fast.checks import integer
from featinv_fast.errors import ArgumentError, ArgumentTypeError

# An item's name is one 64-bit word, stream | seed | index, so that no two items share one.
STREAM_BITS, SEED_BITS, INDEX_BITS = 2, 22, 40

# The odd constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) and of a 32-bit mixer of the same form.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FIRST_32, _SECOND_32 = 0x7FEB352D, 0x846CA68B


def mix(words: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that leaves no visible order in them (SplitMix64's finaliser)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


def stream_keys(stream: int, seed: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """The keys of some items, uint64 [B]; two items share one only if stream, seed and index agree.

    Args:
        stream: what the numbers are for, 0 to 3.
        seed: 0 to 2**22 - 1.
        indices: the items' numbers [B], 0 to 2**40 - 1.

    Raises:
        ArgumentError: a seed or an index outside its range.
        ArgumentTypeError: indices that are not one row of integers, or a seed that is no integer.
    """
    name = np.uint64((stream << (SEED_BITS + INDEX_BITS)) | (_checked_seed(seed) << INDEX_BITS))
    return mix(_checked_indices(indices) | name)


class Draws:
    """Random numbers for B items at once, each item from its own stream and in the order of the calls.

    Args:
        keys: `stream_keys`, uint64 [B].
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys
        self._drawn = 0

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Float64 [B, *shape] in [low, high)."""
        count = math.prod(shape)
        counters = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)  # [count]
        self._drawn += count
        words = mix(self._keys[:, None] + counters * np.uint64(_GOLDEN))  # [B, count]
        unit = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (low + (high - low) * unit).reshape(len(self._keys), *shape)

    def integers(self, count: int, *shape: int) -> np.ndarray:
        """Int64 [B, *shape] in [0, count)."""
        return np.floor(self.uniform(0.0, count, *shape)).astype(np.int64)


def pixel_bytes(keys: np.ndarray, pixels: int) -> np.ndarray:
    """Four random bytes for each pixel, uint8 [B, pixels, 4]; one 32-bit mixer, since this is drawn per pixel."""
    counters = np.arange(pixels, dtype=np.uint32) * np.uint32(_GOLDEN >> 32)
    words = (keys >> np.uint64(32)).astype(np.uint32)[:, None] + counters  # [B, pixels]
    words ^= words >> np.uint32(16)
    words *= np.uint32(_FIRST_32)
    words ^= words >> np.uint32(15)
    words *= np.uint32(_SECOND_32)
    words ^= words >> np.uint32(16)
    return words.astype("<u4", copy=False).view(np.uint8).reshape(len(keys), pixels, 4)


def _checked_seed(seed: int) -> int:
    seed = integer("the seed", seed)
    if not 0 <= seed < 2**SEED_BITS:
        raise ArgumentError(
            "the seed is outside its range", given=seed, expected=f"0 to {2**SEED_BITS - 1}", remedy="choose another"
        )
    return seed


def _checked_indices(indices: np.ndarray | Sequence[int]) -> np.ndarray:
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentTypeError(
            "the indices are not one row of integers",
            given=f"{array.dtype} {list(array.shape)}",
            expected="integers [B]",
            remedy="pass a range, a list of integers or an array of them",
        )
    if array.size and (array.min() < 0 or array.max() >= 2**INDEX_BITS):
        raise ArgumentError(
            "an index is outside its range",
            given=f"{array.min()} to {array.max()}",
            expected=f"0 to {2**INDEX_BITS - 1}",
            remedy="choose others",
        )
    return array.astype(np.uint64)
