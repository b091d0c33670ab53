"""Half precision that overflows, in an item of a batch, is found and computed again in fp32.

fp16 ends at 65504, so a map with values of 1e5 overflows in the very first convolution; fp32 ends at 3.4e38.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.errors import NumericalError


@pytest.fixture(scope="module")
def half(tiny_engine) -> Runtime:
    """The tiny engine in fp16 on a CPU."""
    return Runtime(tiny_engine, backend="torch", precision="fp16", threads=1)


@pytest.fixture
def large(tiny_maps):
    """Three maps; the middle one fits fp32 but not fp16."""
    maps = tiny_maps[:3].clone()
    maps[1] *= 1e5
    return maps


@pytest.mark.parametrize("output_type", ["uint8", "latent"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a6_an_overflow_is_computed_again_in_fp32_and_flagged(half, runtimes, large, caplog, output_type, batch_size):
    with caplog.at_level(logging.WARNING):
        inversion = half.invert(large, output_type=output_type, batch_size=batch_size, seed=1)
    assert inversion.flags.recomputed == (1,)
    assert inversion.flags.precision == "fp16"
    assert "1 rows overflowed in fp16: again in fp32" in caplog.text
    assert inversion.ok.all()
    single = runtimes["torch"].invert(large, output_type=output_type, seed=1)
    assert np.allclose(inversion.images[1], single.images[1], rtol=1e-4, atol=1)
    # The neighbours were not touched: they are what half precision gives without the large one.
    neighbours = half.invert(large[[0, 2]], output_type=output_type, batch_size=batch_size, seed=[1, 3])
    assert neighbours.flags.recomputed == ()
    assert np.abs(inversion.images[[0, 2]].astype(float) - neighbours.images).max() <= 1


def test_a6_an_overflow_in_the_decoder_alone(half, runtimes):
    latents = torch.linspace(-1, 1, 3 * 4 * 8 * 8).reshape(3, 4, 8, 8).clone()
    latents[1] *= 1e6
    images = half.decode(latents)
    assert np.abs(images[1].astype(int) - runtimes["torch"].decode(latents)[1]).max() <= 1
    assert images.std(axis=(1, 2, 3)).min() > 1


def test_a6_an_overflow_in_the_condition_encoder_alone(half, runtimes, large, relative_norm):
    condition = half.encode_condition(large)
    assert condition.isfinite().all()
    assert relative_norm(condition[1], runtimes["torch"].encode_condition(large)[1]) <= 1e-5


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a6_an_overflow_in_fp32_too_is_an_error_and_never_an_image(runtimes, tiny_maps, backend):
    maps = tiny_maps[:3].clone()
    maps[1] *= 2e38
    with pytest.raises(NumericalError, match="row 1") as caught:
        runtimes[backend].invert(maps, seed=4)
    finished = caught.value.finished
    assert finished.ok.tolist() == [True, False, True]
    assert not finished.images[1].any()
    alone = runtimes[backend].invert(tiny_maps[2], seed=6)
    assert np.abs(finished.images[2].astype(int) - alone.images[0]).max() <= 1

    returned = runtimes[backend].invert(maps, seed=4, errors="return", output_type="float")
    assert isinstance(returned.errors[1], NumericalError)
    assert returned.errors[1].remedy
    assert np.isnan(returned.images[1]).all()
    assert returned.flags.recomputed == ()  # it was fp32 all along


def test_a6_an_overflow_in_fp32_after_one_in_half_precision(half, tiny_maps):
    maps = tiny_maps[:3].clone()
    maps[0] *= 2e38
    maps[2] *= 1e5
    inversion = half.invert(maps, errors="return")
    assert inversion.flags.recomputed == (0, 2)
    assert list(inversion.errors) == [0]


def test_a6_a_guidance_scale_beyond_every_image(runtimes, tiny_maps):
    with pytest.raises(NumericalError, match="guidance_scale"):
        runtimes["torch"].invert(tiny_maps[:1], guidance_scale=1e300)


def test_a6_single_graphs_that_overflow_in_fp32(runtimes, tiny_maps):
    with pytest.raises(NumericalError, match="row 1"):
        runtimes["torch"].encode_condition(torch.stack([tiny_maps[0], tiny_maps[1] * 2e38]))
    with pytest.raises(NumericalError, match="row 0"):
        runtimes["torch"].decode(torch.full((1, 4, 8, 8), 3e38))


def test_a6_weights_that_are_stored_in_half_precision(make_engine, large):
    engine = make_engine(metadata={"feature_shape": "6x5x5", "steps": "3"}, precision=Precision.FP16)
    assert open_engine(engine).manifest.precision is Precision.FP16
    runtime = Runtime(engine)
    assert runtime.info["precision"] == "fp16"
    inversion = runtime.invert(large, seed=1, output_type="latent")
    assert inversion.flags.recomputed == (1,)
    wide = Runtime(engine, precision="fp32").invert(large, seed=1, output_type="latent")
    assert wide.flags.precision == "fp32"
    assert np.allclose(inversion.images[1], wide.images[1], rtol=1e-4, atol=1e-4)
