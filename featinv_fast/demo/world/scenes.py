"""What is in a scene: a frozen description, drawn from the item's own random stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from featinv_fast.checks import choice
from featinv_fast.demo.world.colours import PALETTE_HSV, hsv_to_rgb, second_tone
from featinv_fast.demo.world.random_numbers import Draws, mix, stream_keys
from featinv_fast.demo.world.shapes import REACH
from featinv_fast.demo.world.vocabulary import ABSENT, BACKGROUNDS, COLOURS, MAX_OBJECTS, PATTERNS, SHAPES, Split

# Radii as fractions of the image's edge: the dominant one is at least 1.5 times as wide as any other.
DOMINANT_RADIUS = (0.21, 0.30)
OTHER_RADIUS = (0.085, 0.135)

_REACHES = np.array([REACH[name] for name in SHAPES])
_CANDIDATES = 8
_SPLIT_CODES = {Split.TRAIN: 0, Split.VALIDATION: 1, Split.TEST: 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """B scenes of up to three objects. Slot 0 holds the dominant object and is in front of the others.

    Lengths are fractions of the image's edge, x to the right and y down; angles are (cosine, sine) pairs; colours are
    RGB in [0, 1]. An object that is not there has `ABSENT` in `shape`, `colour` and `pattern`.

    Attributes:
        key: uint64 [B], what textures and grain are drawn from.
        shape: int64 [B, 3], index into `SHAPES`.
        pattern: int64 [B, 3], index into `PATTERNS`.
        colour: int64 [B, 3], index into `COLOURS`.
        position: float64 [B, 3, 2], x and y of the centre.
        radius: float64 [B, 3]; shapes of one radius have about the same area.
        rotation: float64 [B, 3, 2].
        paint: float64 [B, 3, 2, 3], the colour and the second tone of the pattern.
        phase: float64 [B, 3, 2], shift of the pattern in periods.
        gloss: float64 [B, 3], strength of the highlight.
        background: int64 [B], index into `BACKGROUNDS`.
        ground: float64 [B, 2, 3], the background's two colours.
        direction: float64 [B, 2], the background's axis.
        layout: float64 [B, 3], the background's own free parameters in [0, 1).
        light: float64 [B, 3], unit vector to the light; z points at the viewer.
        haze: float64 [B], share of the light that mist replaces by the ground's lighter colour; 0 in most scenes.
        gain: float64 [B, 3], exposure and warmth as one factor for each channel.
        grain: float64 [B], amplitude of the noise.
    """

    key: np.ndarray
    shape: np.ndarray
    pattern: np.ndarray
    colour: np.ndarray
    position: np.ndarray
    radius: np.ndarray
    rotation: np.ndarray
    paint: np.ndarray
    phase: np.ndarray
    gloss: np.ndarray
    background: np.ndarray
    ground: np.ndarray
    direction: np.ndarray
    layout: np.ndarray
    light: np.ndarray
    haze: np.ndarray
    gain: np.ndarray
    grain: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> Scenes:
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})

    @property
    def labels(self) -> np.ndarray:
        """The class of each scene, int64 [B], index into `CLASS_NAMES`."""
        return self.shape[:, 0] * len(PATTERNS) + self.pattern[:, 0]

    @property
    def present(self) -> np.ndarray:
        """Which objects are there, bool [B, 3]."""
        return self.shape != ABSENT


def draw_scenes(indices: np.ndarray | Sequence[int], *, split: Split | str = Split.TRAIN, seed: int = 0) -> Scenes:
    """The scenes with these numbers; each depends on the split, the seed and its own number only.

    The description is computed from 64-bit integers and correctly rounded operations: it is bit for bit the same on
    every platform with IEEE 754 arithmetic.

    Args:
        indices: [B] integers from 0 to 2**40 - 1, in any order, repeated or not.
        split: the part of the world.
        seed: 0 to 2**22 - 1; another seed is another world.

    Raises:
        ArgumentError: an unknown split, a seed or an index outside its range.
        ArgumentTypeError: indices that are not one row of integers, or a seed that is no integer.
    """
    draws = Draws(keys := stream_keys(_split_code(split), seed, indices))
    count = len(keys)

    shape = draws.integers(len(SHAPES), MAX_OBJECTS)
    pattern = draws.integers(len(PATTERNS), MAX_OBJECTS)
    colour = draws.integers(len(COLOURS), MAX_OBJECTS)
    radius = np.concatenate([draws.uniform(*DOMINANT_RADIUS, 1), draws.uniform(*OTHER_RADIUS, MAX_OBJECTS - 1)], axis=1)
    # A sixth of a turn either way: every direction of a disc, square, triangle or star, and hearts never on their head.
    rotation = unit_vector(draws.uniform(-1 / 6, 1 / 6, MAX_OBJECTS))
    phase = draws.uniform(0.0, 1.0, MAX_OBJECTS, 2)
    gloss = draws.uniform(0.1, 0.6, MAX_OBJECTS)
    jitter = draws.uniform(-1.0, 1.0, MAX_OBJECTS, 3) * np.array([0.016, 0.08, 0.07])
    wanted = 1 + np.floor(draws.uniform(0.3, 3.0)).astype(np.int64)  # 1 to 3 objects
    position, fits = _place(draws, radius, _REACHES[shape] * radius)

    hsv = PALETTE_HSV[colour] + jitter  # [B, 3, 3]
    main = hsv_to_rgb(hsv)
    absent = ~fits | (np.arange(MAX_OBJECTS) >= wanted[:, None])
    shape, pattern, colour = (np.where(absent, ABSENT, code) for code in (shape, pattern, colour))

    background = draws.integers(len(BACKGROUNDS))
    hue = draws.uniform(0.0, 1.0, 1) + draws.uniform(-0.09, 0.09, 2)
    saturation = draws.uniform(0.10, 0.42, 2)
    value = draws.uniform(0.38, 0.68, 1) + np.array([0.0, 1.0]) * draws.uniform(0.16, 0.32, 1)
    ground = hsv_to_rgb(np.stack([hue, saturation, value], axis=-1))  # two muted colours that belong together
    direction = unit_vector(draws.uniform(-0.125, 0.125))
    layout = draws.uniform(0.0, 1.0, 3)
    # From above: azimuths around the top of the image, so that shadows fall downwards.
    azimuth = unit_vector(draws.uniform(-0.45, -0.05))
    light = np.concatenate([azimuth * 0.6, np.full((count, 1), 0.8)], axis=1)
    warmth = draws.uniform(-0.06, 0.06)
    gain = draws.uniform(0.88, 1.06)[:, None] * (1.0 + warmth[:, None] * np.array([1.0, 0.0, -1.0]))
    return Scenes(
        key=mix(~keys),  # another stream, so that no texture tells what the description drew
        shape=shape,
        pattern=pattern,
        colour=colour,
        position=position,
        radius=radius,
        rotation=rotation,
        paint=np.stack([main, second_tone(main)], axis=2),
        phase=phase,
        gloss=gloss,
        background=background,
        ground=ground,
        direction=direction,
        layout=layout,
        light=light,
        haze=np.maximum(draws.uniform(-0.6, 0.4), 0.0),
        gain=gain,
        grain=draws.uniform(0.01, 0.03),
    )


def unit_vector(turns: np.ndarray) -> np.ndarray:
    """(cosine, sine) of angles in turns, [...] -> [..., 2], to 1e-9.

    Taylor's polynomials on a quarter turn instead of the platform's own functions, whose last bits differ.
    """
    quarters = turns * 4.0
    quadrant = np.floor(quarters)
    angle = (quarters - quadrant) * 1.5707963267948966
    square = angle * angle
    sine = np.zeros_like(angle)
    cosine = np.zeros_like(angle)
    for k in range(8, -1, -1):  # Horner's rule in angle**2
        sine = 1.0 - sine * square / ((2 * k + 2) * (2 * k + 3))
        cosine = 1.0 - cosine * square / ((2 * k + 1) * (2 * k + 2))
    sine = sine * angle
    quadrant = quadrant.astype(np.int64) % 4
    x = np.choose(quadrant, [cosine, -sine, -cosine, sine])
    y = np.choose(quadrant, [sine, cosine, -sine, -cosine])
    return np.stack([x, y], axis=-1)


def _place(draws: Draws, radius: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions [B, 3, 2] inside the frame and whether each object has room [B, 3].

    Each further object takes the best of a few random places (Mitchell's best candidate, SIGGRAPH 1991): the one that
    keeps clearest of those already there.
    """
    count, objects = radius.shape
    unit = draws.uniform(0.0, 1.0, objects, _CANDIDATES, 2)
    candidates = margin[..., None, None] + (1.0 - 2.0 * margin[..., None, None]) * unit  # [B, 3, K, 2]
    rows = np.arange(count)
    position = candidates[:, :, 0].copy()  # [B, 3, 2]
    fits = np.ones((count, objects), dtype=bool)
    for slot in range(1, objects):
        apart = candidates[:, slot, :, None] - position[:, None, :slot]  # [B, K, slot, 2]
        distance = np.sqrt(apart[..., 0] * apart[..., 0] + apart[..., 1] * apart[..., 1])
        clearance = (distance - radius[:, None, :slot] - radius[:, slot, None, None]).min(axis=2)  # [B, K]
        best = clearance.argmax(axis=1)
        position[:, slot] = candidates[rows, slot, best]
        # A little overlap looks natural; an object that would be hidden is left out.
        fits[:, slot] = clearance[rows, best] > -0.35 * radius[:, slot]
    return position, fits


def _split_code(split: Split | str) -> int:
    return _SPLIT_CODES[choice("the split", split, Split)]
