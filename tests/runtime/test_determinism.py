"""The same item with the same seed gives the same image, whatever it travels with, and in whatever thread.

Summation orders change with the shape of a batch. In these small networks that moved images (about [-1, 1]) by up to
3e-6 on torch, by nothing on onnxruntime, and by up to 3e-6 from one to the other: 1e-5 and 2e-5 are asked for. A value
on the edge between two bytes may then fall to either side.
"""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
import torch

from featinv_fast import Runtime

TOLERANCE = 1e-5
TOLERANCE_ACROSS_BACKENDS = 2e-5

SAMPLERS = {
    "ddim": {"sampler": "ddim", "steps": 4},
    "ddim with noise": {"sampler": "ddim", "steps": 4, "eta": 0.7},
    "ddim without guidance": {"sampler": "ddim", "steps": 4, "guidance_scale": 1.0, "eta": 1.0},
    "lcm": {"sampler": "lcm", "steps": 4},
    "dpm++2m": {"sampler": "dpm++2m", "steps": 4},
}
SEEDS = [100, 7, 2**62, 0, 7, 12, 55]


@pytest.fixture(scope="module", params=SAMPLERS)
def options(request):
    """A sampler and its options."""
    return SAMPLERS[request.param]


@pytest.fixture(scope="module")
def together(runtime, tiny_maps, options):
    """All seven maps in one batch."""
    return runtime.invert(tiny_maps, seed=SEEDS, output_type="float", **options)


def _assert_same(given, expected):
    assert np.abs(given - expected).max() <= TOLERANCE


@pytest.mark.parametrize("row", [0, 3, 6])
def test_a10_alone(runtime, tiny_maps, options, together, relative_norm, row):
    alone = runtime.invert(tiny_maps[row], seed=[SEEDS[row]], output_type="float", **options)
    _assert_same(alone.images[0], together.images[row])
    assert relative_norm(alone.latents[0], together.latents[row]) <= TOLERANCE


def test_a10_in_another_order(runtime, tiny_maps, options, together):
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = runtime.invert(tiny_maps[order], seed=[SEEDS[i] for i in order], output_type="float", **options)
    _assert_same(shuffled.images, together.images[order])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a10_in_other_batches(runtime, tiny_maps, options, together, batch_size):
    split = runtime.invert(tiny_maps, seed=SEEDS, batch_size=batch_size, output_type="float", **options)
    _assert_same(split.images, together.images)
    assert split.flags.batch_size == batch_size


def test_a10_among_samples(runtime, tiny_maps, options, together):
    """Row 0 is the first of map 0's samples, and row 3 the second of map 1's."""
    seeds = [SEEDS[0], 1, 2, SEEDS[1]]
    several = runtime.invert(tiny_maps[:2], samples=2, seed=seeds, batch_size=3, output_type="float", **options)
    _assert_same(several.images[[0, 3]], together.images[:2])


def test_a10_bytes_differ_by_one_at_most_and_rarely(runtime, tiny_maps, options):
    together = runtime.invert(tiny_maps, seed=SEEDS, **options).images.astype(int)
    split = runtime.invert(tiny_maps, seed=SEEDS, batch_size=2, **options).images.astype(int)
    assert np.abs(together - split).max() <= 1
    assert (together != split).mean() <= 1e-3


def test_a10_again(runtime, tiny_maps, options, together):
    assert np.array_equal(runtime.invert(tiny_maps, seed=SEEDS, output_type="float", **options).images, together.images)


def test_a10_on_the_other_backend(runtimes, tiny_maps, options):
    torch_images, onnx_images = (
        runtime.invert(tiny_maps, seed=SEEDS, output_type="float", **options).images for runtime in runtimes.values()
    )
    assert np.abs(torch_images - onnx_images).max() <= TOLERANCE_ACROSS_BACKENDS


def test_other_seeds_give_other_images(runtimes, tiny_maps):
    maps = tiny_maps[[0, 0, 0]]
    images = runtimes["torch"].invert(maps, seed=[3, 4, 3], output_type="float").images
    _assert_same(images[0], images[2])
    assert np.abs(images[0] - images[1]).max() > 0.1


def test_one_seed_counts_up_row_by_row(runtimes, tiny_maps):
    counted = runtimes["torch"].invert(tiny_maps[:2], samples=2, seed=9)
    listed = runtimes["torch"].invert(tiny_maps[:2], samples=2, seed=np.array([9, 10, 11, 12]))
    assert counted.seeds == listed.seeds == (9, 10, 11, 12)
    assert np.array_equal(counted.images, listed.images)
    assert np.array_equal(
        counted.latents, runtimes["torch"].invert(tiny_maps[:2], samples=2, seed=torch.arange(9, 13)).latents
    )


def test_the_global_generator_is_neither_read_nor_moved(runtimes, tiny_maps):
    torch.manual_seed(1)
    first = runtimes["torch"].invert(tiny_maps[:2], sampler="lcm", steps=2)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = runtimes["torch"].invert(tiny_maps[:2], sampler="lcm", steps=2)
    assert np.array_equal(first.images, second.images)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_explicit_start_noise_takes_the_place_of_the_seeds_own(runtimes, tiny_maps, relative_norm):
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    runtime = runtimes["torch"]
    seeded = runtime.invert(tiny_maps[:2], seed=5, output_type="latent").images
    for latents in (noise, noise.numpy(), noise.double()):
        assert np.array_equal(runtime.invert(tiny_maps[:2], latents=latents, output_type="latent").images, seeded)
    # Split into batches, each row still starts from its own.
    split = runtime.invert(tiny_maps[:2], latents=noise, batch_size=1, output_type="latent").latents
    assert relative_norm(split, torch.from_numpy(seeded)) <= TOLERANCE


def test_a13_threads_share_one_runtime(runtime, tiny_maps):
    calls = [(row, options) for row in range(4) for options in SAMPLERS.values()]

    def invert(call):
        row, options = call
        return runtime.invert(tiny_maps[row], seed=row, output_type="float", **options).images

    serial = [invert(call) for call in calls]
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        parallel = list(pool.map(invert, calls))
    for one, other in zip(serial, parallel, strict=True):
        assert np.array_equal(one, other)


def test_a13_a_limit_of_threads_is_the_runtimes_own(tiny_engine, tiny_maps):
    before = torch.get_num_threads()
    limited = Runtime(tiny_engine, backend="torch", threads=before + 1)
    seen = []
    graph = limited._executor.session.graphs["decoder"]
    graph.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    limited.invert(tiny_maps[:1])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
