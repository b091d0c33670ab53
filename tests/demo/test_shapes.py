import numpy as np
import pytest

from featinv_fast.demo.world.patterns import SECOND_TONE
from featinv_fast.demo.world.shapes import DISTANCES, REACH
from featinv_fast.demo.world.vocabulary import PATTERNS, SHAPES

EDGE, PIXELS = 3.2, 400


@pytest.fixture(scope="module")
def grid():
    places = ((np.arange(PIXELS) + 0.5) / PIXELS - 0.5).astype(np.float32) * EDGE
    return np.meshgrid(places, -places)


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_distances(grid, shape):
    u, v = grid
    distance = DISTANCES[shape](u, v)
    assert distance.dtype == np.float32
    slope = np.hypot(*np.gradient(distance, EDGE / PIXELS))
    assert slope.max() < 1.06
    assert slope[distance < 0].mean() > 0.85
    # An outline at the right place: points half way in (out) are inside (outside).
    assert distance[PIXELS // 2, PIXELS // 2] < -0.5
    assert (distance[0] > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_similar_areas_within_their_reach(grid, shape):
    u, v = grid
    inside = DISTANCES[shape](u, v) < 0
    assert 2.2 < inside.mean() * EDGE**2 < 3.2
    reach = np.sqrt(u * u + v * v)[inside].max()
    assert REACH[shape] - 0.06 < reach <= REACH[shape]


@pytest.mark.parametrize(("shape", "turns"), [("square", 4), ("triangle", 3), ("star", 5)])
def test_regular_shapes_look_the_same_after_a_turn(grid, shape, turns):
    u, v = grid
    angle = 2 * np.pi / turns
    turned = DISTANCES[shape](u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle))
    # The triangle's corners are rounded one after the other, which shows a little in its middle.
    np.testing.assert_allclose(turned, DISTANCES[shape](u, v), atol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_symmetric_about_their_axis(grid, shape):
    u, v = grid
    np.testing.assert_array_equal(DISTANCES[shape](u, v), DISTANCES[shape](-u, v))


@pytest.mark.parametrize(
    ("pattern", "share"), [("plain", 0.0), ("striped", 0.42), ("dotted", np.pi * 0.285**2), ("checkered", 0.5)]
)
def test_patterns_cover_their_share(grid, pattern, share):
    a, b = (axis[None] / np.float32(EDGE) * 8 for axis in grid)  # 8 x 8 periods
    tone = SECOND_TONE[pattern](a, b, np.full((1, 1, 1), PIXELS / 8, dtype=np.float32))
    assert tone.dtype == np.float32
    assert tone.min() >= 0
    assert tone.max() <= 1
    assert tone.mean() == pytest.approx(share, abs=0.01)


def test_every_word_has_its_function():
    assert tuple(DISTANCES) == tuple(REACH) == SHAPES
    assert tuple(SECOND_TONE) == PATTERNS
