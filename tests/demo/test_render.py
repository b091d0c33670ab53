import colorsys
import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from featinv_fast.demo import CLASS_NAMES, Style, draw_scenes, object_masks, render
from featinv_fast.demo.world.colours import PALETTE_HSV, hsv_to_rgb
from featinv_fast.demo.world.vocabulary import BACKGROUNDS, PATTERNS, SHAPES
from featinv_fast.errors import ArgumentError, ArgumentTypeError

COUNT = 600


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(range(COUNT), split="validation")


@pytest.fixture(scope="module")
def images(scenes):
    return render(scenes)


@pytest.fixture(scope="module")
def masks(scenes):
    return object_masks(scenes)


def test_pixels_never_change():
    # Every operation is one that IEEE 754 fixes to the last bit, so this hash should hold on every platform. It was
    # seen on x86-64 Linux with numpy 1.26 and 2.4, with and without AVX2 and FMA.
    digest = hashlib.sha256()
    for style in Style:
        digest.update(render(draw_scenes([0, 1, 2, 77, 12345]), style=style).tobytes())
    digest.update(render(draw_scenes([5], split="test", seed=9), size=48).tobytes())
    assert digest.hexdigest()[:16] == "2e8925be1d60227e"


@pytest.mark.parametrize("style", Style)
def test_a_batch_is_its_images_one_by_one(style):
    order = [40, 3, 17, 3, *range(100, 130)]  # more than one chunk
    together = render(draw_scenes(order), style=style)
    for row, index in enumerate(order):
        np.testing.assert_array_equal(render(draw_scenes([index]), style=style)[0], together[row])


@pytest.mark.parametrize("size", [16, 33, 64, 128])
def test_shapes_and_types(scenes, size):
    images = render(scenes[:3], size=size)
    assert (images.shape, images.dtype) == ((3, size, size, 3), np.uint8)
    masks = object_masks(scenes[:3], size=size)
    assert (masks.shape, masks.dtype) == ((3, 3, size, size), np.bool_)


def test_no_scenes(scenes):
    assert render(scenes[:0]).shape == (0, 64, 64, 3)
    assert object_masks(scenes[:0]).shape == (0, 3, 64, 64)


def test_size_changes_the_resolution_and_not_the_scene(scenes):
    coarse = render(scenes[:40], size=32).astype(float)
    fine = render(scenes[:40], size=64).astype(float).reshape(40, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(coarse - fine).mean() < 8
    other = np.roll(fine, 1, axis=0)
    assert np.abs(coarse - other).mean() > 30


def test_masks_are_disjoint_and_only_where_an_object_is(scenes, masks):
    assert masks.sum(axis=1).max() == 1
    np.testing.assert_array_equal(masks.any(axis=(2, 3)), scenes.present)


def test_masks_lie_where_the_description_says(scenes, masks):
    places = (np.arange(64) + 0.5) / 64
    areas = masks.sum(axis=(2, 3))
    for slot, share in ((0, 0.99), (1, 0.9), (2, 0.9)):  # smaller ones may be partly hidden
        rows = np.flatnonzero(scenes.present[:, slot])
        mask = masks[rows, slot]
        x = (mask * places).sum(axis=(1, 2)) / areas[rows, slot]
        y = (mask * places[:, None]).sum(axis=(1, 2)) / areas[rows, slot]
        near = np.hypot(x - scenes.position[rows, slot, 0], y - scenes.position[rows, slot, 1]) < 0.03
        assert near.mean() >= share
    assert (areas[:, 0] > 1.4 * areas[:, 1:].max(axis=1)).all()


def test_the_mask_has_the_shape_of_the_label(scenes, masks):
    # The share of its smallest circle about the centre that a shape fills tells most shapes apart ...
    places = (np.arange(64) + 0.5) / 64
    x, y = scenes.position[:, 0, :, None, None].swapaxes(0, 1)
    place = (places - x) + 1j * (places[:, None] - y)  # [B, 64, 64]
    reach = np.where(masks[:, 0], np.abs(place), 0).max(axis=(1, 2))
    fill = masks[:, 0].sum(axis=(1, 2)) / (np.pi * (64 * reach) ** 2)
    by_shape = {name: fill[scenes.shape[:, 0] == code] for code, name in enumerate(SHAPES)}
    assert by_shape["disc"].min() > 0.93
    for name, low, high in (
        ("square", 0.66, 0.80),
        ("heart", 0.60, 0.80),
        ("triangle", 0.40, 0.54),
        ("star", 0.44, 0.60),
    ):
        assert low < by_shape[name].min(), name
        assert high > by_shape[name].max(), name
    # ... and whether it has three corners or five tells triangles from stars.
    unit = np.where(masks[:, 0], place / reach[:, None, None], 0)
    folds = {count: np.abs((unit**count).sum(axis=(1, 2))) for count in (3, 5)}
    assert (folds[3] > folds[5])[scenes.shape[:, 0] == SHAPES.index("triangle")].all()
    assert (folds[5] > folds[3])[scenes.shape[:, 0] == SHAPES.index("star")].all()


def test_the_colour_inside_the_mask_is_the_colour_of_the_label(scenes, images, masks):
    hits = [
        nearest_colour(images[row][masks[row, slot]]) == scenes.colour[row, slot]
        for row in range(COUNT)
        for slot in range(3)
        if masks[row, slot].sum() > 20
    ]
    assert len(hits) > COUNT
    assert np.mean(hits) > 0.97


def nearest_colour(pixels):
    """The palette's name for the most colourful fifth of some pixels [n, 3], by hue."""
    chroma = pixels.max(axis=1).astype(int) - pixels.min(axis=1)
    chosen = np.median(pixels[chroma >= np.quantile(chroma, 0.8)], axis=0) / 255
    apart = np.abs(PALETTE_HSV[:, 0] - colorsys.rgb_to_hsv(*chosen)[0])
    return np.minimum(apart, 1 - apart).argmin()


def test_only_patterned_objects_have_two_tones(scenes, images, masks):
    # Saturation hardly depends on the light, and a second tone has far less of it.
    saturation = 1 - images.min(axis=3) / images.max(axis=3)
    low, high = np.stack([np.quantile(saturation[row][masks[row, 0]], (0.12, 0.85)) for row in range(COUNT)], axis=1)
    plain = scenes.pattern[:, 0] == PATTERNS.index("plain")
    assert (low / high > 0.7)[plain].mean() > 0.95
    assert (low / high < 0.7)[~plain].mean() > 0.95


def test_light_comes_from_above(scenes, images, masks):
    discs = np.flatnonzero(scenes.labels == CLASS_NAMES.index("plain disc"))
    assert len(discs) > 10
    for row in discs:
        rows, columns = np.nonzero(masks[row, 0])
        upper = rows < scenes.position[row, 0, 1] * 64
        tone = images[row][rows, columns].mean(axis=1)
        assert tone[upper].mean() > tone[~upper].mean()


def test_every_background_looks_its_own_way(scenes, images):
    # Mean steps between neighbouring rows and columns, free of colour: smooth kinds below rough ones.
    tone = images.mean(axis=3)
    step = np.abs(np.diff(tone, axis=1)).mean(axis=(1, 2))
    roughness = {name: step[scenes.background == code].mean() for code, name in enumerate(BACKGROUNDS)}
    assert max(roughness["gradient"], roughness["glow"], roughness["horizon"]) < roughness["waves"]
    assert len(roughness) == len(BACKGROUNDS)


def test_haze_takes_contrast_away(scenes):
    thick = dataclasses.replace(scenes[:40], haze=np.full(40, 0.4))
    clear = dataclasses.replace(scenes[:40], haze=np.zeros(40))
    contrast = [render(each, size=64).astype(float).std(axis=(1, 2)) for each in (thick, clear)]  # [40, 3]
    np.testing.assert_allclose(contrast[0] / contrast[1], 0.6, atol=0.1)
    assert 0.3 < (scenes.haze > 0).mean() < 0.5


def test_negatives_are_the_inverted_images(scenes, images):
    negative = render(scenes[:50], style="negative").astype(int)
    assert np.abs(255 - images[:50] - negative).max() <= 1


def test_line_drawings_are_ink_on_paper(scenes, masks):
    drawings = render(scenes[:100], style=Style.LINE_DRAWING).astype(int)
    assert (drawings.max(axis=3) - drawings.min(axis=3)).max() < 35  # hardly any colour
    tone = drawings.mean(axis=3)
    paper = (tone > 200).mean(axis=(1, 2))
    assert (paper > 0.4).all()
    assert (tone.min(axis=(1, 2)) < 60).all()
    plain = np.flatnonzero(scenes.pattern[:100, 0] == PATTERNS.index("plain"))
    assert all((tone[row][masks[row, 0]] > 200).mean() > 0.5 for row in plain)


def test_hsv_to_rgb():
    hsv = np.random.default_rng(0).uniform(size=(200, 3))
    exact = np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv])
    np.testing.assert_allclose(hsv_to_rgb(hsv), exact, atol=1e-12)
    np.testing.assert_allclose(hsv_to_rgb(hsv - [2.0, 0.0, 0.0]), exact, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": 15}, ArgumentError),
        ({"size": 64.0}, ArgumentTypeError),
        ({"size": True}, ArgumentTypeError),
        ({"style": "oil"}, ArgumentError),
    ],
)
def test_bad_arguments_are_refused(scenes, options, error):
    with pytest.raises(error, match="expected:"):
        render(scenes[:1], **options)


def test_importing_the_world_brings_no_torch():
    code = "import sys, featinv_fast.demo; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
