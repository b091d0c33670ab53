import hashlib

import numpy as np

from featinv_fast.demo.world.random_numbers import Draws, mix, pixel_bytes, stream_keys


def test_mix_is_splitmix64():
    # The first output of the published generator for state 0, whose counter then stands at the golden ratio.
    assert mix(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF


def test_streams_of_other_names_are_other_streams():
    indices = np.array([0, 1, 2**40 - 1])
    keys = np.concatenate([stream_keys(stream, seed, indices) for stream in range(4) for seed in (0, 1, 2**22 - 1)])
    assert len(np.unique(keys)) == len(keys) == 36


def test_draws_are_uniform_and_independent_of_the_batch():
    keys = stream_keys(0, 0, np.arange(4000))
    values = Draws(keys).uniform(-1.0, 3.0, 2, 3)
    assert values.shape == (4000, 2, 3)
    assert values.min() >= -1.0
    assert values.max() < 3.0
    np.testing.assert_allclose(values.mean(axis=0), 1.0, atol=0.1)
    np.testing.assert_allclose(values.var(axis=0), 16 / 12, rtol=0.1)
    correlation = np.corrcoef(values.reshape(4000, 6), rowvar=False) - np.eye(6)
    assert np.abs(correlation).max() < 0.08
    np.testing.assert_array_equal(Draws(keys[7:8]).uniform(-1.0, 3.0, 2, 3), values[7:8])


def test_draws_go_on_where_they_stopped():
    keys = stream_keys(1, 5, np.arange(3))
    draws = Draws(keys)
    apart = np.concatenate([draws.uniform(0.0, 1.0, 2), draws.uniform(0.0, 1.0)[:, None]], axis=1)
    np.testing.assert_array_equal(apart, Draws(keys).uniform(0.0, 1.0, 3))


def test_integers_cover_their_range():
    values = Draws(stream_keys(0, 0, np.arange(500))).integers(5, 4)
    assert values.dtype == np.int64
    np.testing.assert_array_equal(np.unique(values), np.arange(5))


def test_pixel_bytes_are_fixed_and_spread():
    values = pixel_bytes(stream_keys(0, 0, np.arange(3)), 4096)
    assert values.shape == (3, 4096, 4)
    assert abs(values.mean() - 127.5) < 1.0
    assert np.abs(np.corrcoef(values.reshape(3, -1)) - np.eye(3)).max() < 0.05
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "4808cdc06e4d2e84"
