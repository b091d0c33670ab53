"""Natural painting: shaded, lit objects that throw soft shadows on a textured background."""

from __future__ import annotations

import numpy as np

from featinv_fast.demo.world import backgrounds
from featinv_fast.demo.world.random_numbers import pixel_bytes
from featinv_fast.demo.world.scenes import Scenes
from featinv_fast.demo.world.surfaces import (
    Surface,
    by_kind,
    normals,
    outline_distance,
    own_coordinates,
    plane,
    second_tone_share,
    surface,
)
from featinv_fast.demo.world.vocabulary import BACKGROUNDS, MAX_OBJECTS

_SHADOW_DEPTH = 0.5  # how much light a shadow takes away
_SHADOW_SOFTNESS = 0.3  # half width of its edge in radii
_SHADOW_LENGTH = 0.45  # how far it falls, in radii for a light at 45 degrees


def paint(scenes: Scenes, size: int) -> np.ndarray:
    """Float32 [3, n, H, W], about [0, 1]."""
    canvas = _ground(scenes, size)
    for slot in reversed(range(MAX_OBJECTS)):
        objects = surface(scenes, slot, size)
        if len(objects.rows):
            _throw_shadow(canvas, scenes, slot, objects, size)
            _put_object(canvas, scenes, slot, objects)
    _expose(canvas, scenes, size)
    return canvas


def _ground(scenes: Scenes, size: int) -> np.ndarray:
    share = background_share(scenes, size)
    low, high = scenes.ground[:, 0], scenes.ground[:, 1]
    return np.stack([plane(low[:, c]) + plane(high[:, c] - low[:, c]) * share for c in range(3)])


def background_share(scenes: Scenes, size: int) -> np.ndarray:
    """How far each pixel lies between the two ground colours, float32 [n, H, W] in [0, 1]."""
    pixels = (np.arange(size) + 0.5) / size - 0.5
    cosine, sine = scenes.direction[:, :1], scenes.direction[:, 1:]  # [n, 1]
    x = (cosine * pixels).astype(np.float32)[:, None, :] + (sine * pixels).astype(np.float32)[:, :, None]
    y = (cosine * pixels).astype(np.float32)[:, :, None] - (sine * pixels).astype(np.float32)[:, None, :]
    noise = backgrounds.value_noise(scenes.key, size)
    layout = scenes.layout.astype(np.float32)[:, :, None, None]
    edge = plane(np.full(len(scenes), size))
    share = by_kind(scenes.background, [backgrounds.KINDS[name] for name in BACKGROUNDS], x, y, noise, layout, edge)
    return np.clip(share, 0.0, 1.0)


def _throw_shadow(canvas: np.ndarray, scenes: Scenes, slot: int, objects: Surface, size: int) -> None:
    rows = objects.rows
    light, radius = scenes.light[rows], scenes.radius[rows, slot]
    length = _SHADOW_LENGTH * radius / light[:, 2]
    u, v = own_coordinates(scenes, rows, slot, size, offset=(-light[:, 0] * length, -light[:, 1] * length))
    distance = outline_distance(scenes, rows, slot, u, v)  # in radii
    edge = np.clip(0.5 - distance * (0.5 / _SHADOW_SOFTNESS), 0.0, 1.0)
    canvas[:, rows] *= 1.0 - edge * edge * (3.0 - 2.0 * edge) * _SHADOW_DEPTH


def _put_object(canvas: np.ndarray, scenes: Scenes, slot: int, objects: Surface) -> None:
    rows = objects.rows
    x, y, z = normals(scenes, slot, objects)
    light = scenes.light[rows]
    facing = np.maximum(x * plane(light[:, 0]) + y * plane(light[:, 1]) + z * plane(light[:, 2]), 0.0)
    shade = 0.42 + 0.72 * facing
    # Blinn's highlight: the normal against the direction halfway between light and viewer, to the 32nd power.
    halfway = light + np.array([0.0, 0.0, 1.0])
    halfway = halfway / np.sqrt(halfway[:, 0] ** 2 + halfway[:, 1] ** 2 + halfway[:, 2] ** 2)[:, None]
    shine = np.maximum(x * plane(halfway[:, 0]) + y * plane(halfway[:, 1]) + z * plane(halfway[:, 2]), 0.0)
    for _ in range(5):
        shine *= shine
    shine *= plane(scenes.gloss[rows, slot])

    share = second_tone_share(scenes, slot, objects)
    coverage = objects.coverage
    tones = scenes.paint[rows, slot]  # [n, 2, 3]
    for c in range(3):
        colour = plane(tones[:, 0, c]) + plane(tones[:, 1, c] - tones[:, 0, c]) * share
        colour *= shade
        colour += shine
        colour -= canvas[c, rows]
        colour *= coverage
        canvas[c, rows] += colour


def _expose(canvas: np.ndarray, scenes: Scenes, size: int) -> None:
    """Haze, exposure, warmth and grain."""
    grain = pixel_bytes(scenes.key, size * size).reshape(len(scenes), size, size, 4)
    amplitude = scenes.grain / 127.5
    mist = scenes.ground[:, 1] * scenes.haze[:, None] * scenes.gain
    clear = (1.0 - scenes.haze)[:, None] * scenes.gain
    for c in range(3):
        canvas[c] *= plane(clear[:, c])
        canvas[c] += grain[..., c] * plane(amplitude) + plane(mist[:, c] - scenes.grain)
