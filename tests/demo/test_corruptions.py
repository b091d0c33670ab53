import numpy as np
import pytest

from featinv_fast.demo import CORRUPTION_PARAMETERS, SEVERITIES, Corruption, corrupt, draw_scenes, render
from featinv_fast.errors import ArgumentError, ArgumentTypeError


@pytest.fixture(scope="module")
def images():
    return render(draw_scenes(range(60), split="test"))


def distance(corrupted, images):
    return np.sqrt(np.square(corrupted.astype(float) - images).mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("kind", Corruption)
def test_each_severity_is_further_from_the_image(images, kind):
    distances = np.stack([distance(corrupt(images, kind, severity), images) for severity in SEVERITIES])
    assert (distances[0] > 0).all()
    assert (np.diff(distances.mean(axis=1)) > 0.1).all()
    if kind is not Corruption.PIXELATE:  # whose grids may by chance suit an image
        assert (np.diff(distances, axis=0) > 0).all()


@pytest.mark.parametrize("kind", Corruption)
def test_shape_type_and_input_are_kept(images, kind):
    before = images.copy()
    corrupted = corrupt(images, kind.value, 5)
    assert (corrupted.shape, corrupted.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(images, before)
    assert corrupt(images[:0], kind, 1).shape == (0, 64, 64, 3)


@pytest.mark.parametrize("kind", Corruption)
def test_an_image_does_not_depend_on_its_batch(images, kind):
    together = corrupt(images, kind, 3, seed=4, indices=np.arange(60) + 100)
    alone = corrupt(images[7:8], kind, 3, seed=4, indices=[107])
    assert np.abs(alone[0].astype(int) - together[7]).max() <= 1  # matrix products may round differently
    if kind is Corruption.GAUSSIAN_NOISE:
        np.testing.assert_array_equal(alone[0], together[7])


def test_noise_has_its_deviation_and_its_seed():
    grey = np.full((4, 64, 64, 3), 128, dtype=np.uint8)
    for severity in SEVERITIES:
        noise = corrupt(grey, "gaussian_noise", severity).astype(float) - 128
        expected = CORRUPTION_PARAMETERS[Corruption.GAUSSIAN_NOISE][severity - 1] * 255
        assert noise.std() == pytest.approx(expected, rel=0.02)
    one = corrupt(grey, "gaussian_noise", 1, seed=1)
    assert (one != corrupt(grey, "gaussian_noise", 1, seed=2)).mean() > 0.9
    assert (one[0] != one[1]).mean() > 0.9


def test_contrast_shrinks_about_the_mean(images):
    corrupted = corrupt(images, "contrast", 2).astype(float)
    np.testing.assert_allclose(corrupted.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=0.2)
    np.testing.assert_allclose(corrupted.std(axis=(1, 2)), 0.3 * images.std(axis=(1, 2)), rtol=0.05)


def test_blur_spreads_a_point_as_a_gaussian():
    point = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    point[0, 30, 20] = 255
    blurred = corrupt(point, "gaussian_blur", 5)[0, :, :, 1].astype(float)
    offsets = np.arange(64) - 30
    expected = 255 * np.exp(-(offsets[:, None] ** 2 + (offsets + 10) ** 2) / (2 * 1.5**2)) / (2 * np.pi * 1.5**2)
    np.testing.assert_allclose(blurred, expected, atol=0.6)
    flat = np.full((1, 64, 64, 3), 77, dtype=np.uint8)
    np.testing.assert_array_equal(corrupt(flat, "gaussian_blur", 5), flat)


def test_pixelate_leaves_blocks(images):
    blocks = corrupt(images, "pixelate", 5).reshape(60, 32, 2, 32, 2, 3)
    assert np.ptp(blocks, axis=(2, 4)).max() == 0
    means = images.reshape(60, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(blocks[:, :, 0, :, 0] - means).max() <= 0.51


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("fog", 1), {}, ArgumentError),
        (("contrast", 0), {}, ArgumentError),
        (("contrast", 6), {}, ArgumentError),
        (("contrast", 1), {"indices": [1, 2]}, ArgumentError),
        (("contrast", 1), {"indices": [0.5] * 60}, ArgumentTypeError),
        (("gaussian_noise", 1), {"seed": -1}, ArgumentError),
    ],
)
def test_bad_arguments_are_refused(images, arguments, options, error):
    with pytest.raises(error, match="expected:"):
        corrupt(images, *arguments, **options)


@pytest.mark.parametrize("given", [np.zeros((1, 64, 64, 3)), np.zeros((64, 64, 3), dtype=np.uint8), [[0]]])
def test_only_images_are_corrupted(given):
    with pytest.raises(ArgumentTypeError, match="uint8"):
        corrupt(given, "contrast", 1)
