import dataclasses
import hashlib

import numpy as np
import pytest

from featinv_fast.demo import ABSENT, CLASS_NAMES, Split, draw_scenes
from featinv_fast.demo.world.random_numbers import stream_keys
from featinv_fast.demo.world.scenes import DOMINANT_RADIUS, OTHER_RADIUS, unit_vector
from featinv_fast.demo.world.vocabulary import BACKGROUNDS, COLOURS, PATTERNS, SHAPES
from featinv_fast.errors import ArgumentError, ArgumentTypeError


def arrays(scenes):
    return {field.name: getattr(scenes, field.name) for field in dataclasses.fields(scenes)}


def assert_equal(one, other):
    for name, array in arrays(one).items():
        np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


def test_descriptions_never_change():
    # Integers and correctly rounded operations alone: the same on every platform.
    digest = hashlib.sha256()
    for split in Split:
        for array in arrays(draw_scenes([0, 1, 2, 999, 2**40 - 1], split=split, seed=3)).values():
            digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest()[:16] == "cd5a611bdb8e8c7c"


def test_a_scene_does_not_depend_on_its_batch():
    together = draw_scenes([5, 3, 5, 900])
    for row, index in enumerate([5, 3, 5, 900]):
        assert_equal(draw_scenes([index]), together[row : row + 1])


def test_splits_and_seeds_share_no_scene():
    keys = [draw_scenes(range(3000), split=split, seed=seed).key for split in Split for seed in (0, 1)]
    assert len(np.unique(np.concatenate(keys))) == 18000
    # Not only the keys: no two scenes have their main object at the same place.
    places = [draw_scenes(range(3000), split=split).position[:, 0] for split in Split]
    assert len(np.unique(np.concatenate(places), axis=0)) == 9000


def test_the_dominant_object_is_always_there_and_clearly_largest():
    scenes = draw_scenes(range(2000))
    assert scenes.present[:, 0].all()
    assert DOMINANT_RADIUS[0] > 1.5 * OTHER_RADIUS[1]
    assert (scenes.radius[:, :1] > 1.5 * scenes.radius[:, 1:]).all()


def test_textures_are_drawn_from_streams_of_their_own():
    keys = draw_scenes(range(1000)).key
    assert not np.isin(keys, np.concatenate([stream_keys(stream, 0, np.arange(1000)) for stream in range(4)])).any()


def test_every_class_and_every_word_occurs_about_equally():
    scenes = draw_scenes(range(8000))
    for codes, names in (
        (scenes.labels, CLASS_NAMES),
        (scenes.background, BACKGROUNDS),
        (scenes.shape[:, 0], SHAPES),
        (scenes.pattern[:, 0], PATTERNS),
        (scenes.colour[:, 0], COLOURS),
    ):
        counts = np.bincount(codes, minlength=len(names))
        assert len(counts) == len(names)
        np.testing.assert_allclose(counts / 8000, 1 / len(names), rtol=0.25)
    objects = np.bincount(scenes.present.sum(axis=1), minlength=4)
    assert objects[0] == 0
    assert (objects[1:] > 800).all()


def test_absent_objects_have_no_codes():
    scenes = draw_scenes(range(500))
    for codes in (scenes.shape, scenes.pattern, scenes.colour):
        np.testing.assert_array_equal(codes == ABSENT, ~scenes.present)


def test_objects_lie_inside_the_frame():
    scenes = draw_scenes(range(2000))
    beyond = np.abs(scenes.position - 0.5).max(axis=2) + scenes.radius
    assert beyond.max() <= 0.5


def test_unit_vectors():
    turns = np.linspace(-3.0, 3.0, 1001)
    exact = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=-1)
    np.testing.assert_allclose(unit_vector(turns), exact, atol=1e-12)


def test_light_is_a_unit_vector_from_above():
    light = draw_scenes(range(200)).light
    np.testing.assert_allclose((light**2).sum(axis=1), 1.0, atol=1e-9)
    assert (light[:, 1] < 0).all()


def test_no_scenes():
    scenes = draw_scenes([])
    assert len(scenes) == 0
    assert scenes.labels.shape == (0,)


@pytest.mark.parametrize(
    ("indices", "options", "error"),
    [
        ([-1], {}, ArgumentError),
        ([2**40], {}, ArgumentError),
        ([0.5], {}, ArgumentTypeError),
        ([[1]], {}, ArgumentTypeError),
        (7, {}, ArgumentTypeError),
        ([True], {}, ArgumentTypeError),
        ([0], {"split": "training"}, ArgumentError),
        ([0], {"seed": 2**22}, ArgumentError),
        ([0], {"seed": -1}, ArgumentError),
        ([0], {"seed": 1.0}, ArgumentTypeError),
        ([0], {"seed": True}, ArgumentTypeError),
    ],
)
def test_bad_arguments_are_refused(indices, options, error):
    with pytest.raises(error, match="expected:"):
        draw_scenes(indices, **options)
