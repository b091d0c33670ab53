"""The official code's outputs through the public interface alone: a checkpoint file in, latents and images out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.engine import open_engine

# A change of summation order alone moves the official outputs by 2e-6.
TOLERANCE = 2e-5
BACKENDS = ("torch", "onnxruntime")


@pytest.fixture(scope="module")
def runtimes(golden_engine) -> dict[str, Runtime]:
    """The golden engine, which does not say how large its feature maps are."""
    return {backend: Runtime(golden_engine, backend=backend) for backend in BACKENDS}


@pytest.fixture(scope="module")
def sized_runtime(golden_engine, restage, tmp_path_factory) -> Runtime:
    """The same engine where the checkpoint does say so: it tells layouts apart."""
    spec = dataclasses.replace(open_engine(golden_engine).manifest.features, height=9, width=9)
    return Runtime(restage(golden_engine, tmp_path_factory.mktemp("sized") / "golden.engine", features=spec))


@pytest.fixture(scope="module")
def maps(golden):
    """The golden features in each layout."""
    nchw = golden.inputs["in.features"]
    return {"nchw": nchw, "nhwc": nchw.permute(0, 2, 3, 1), "tokens": golden.tokens}


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_condition_of_every_layout(golden, runtimes, maps, relative_norm, backend, layout):
    condition = runtimes[backend].encode_condition(maps[layout], layout=layout)
    assert relative_norm(condition, golden.expected[f"condition.{layout}"]) <= TOLERANCE


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
def test_a2_an_engine_that_knows_the_size_of_its_maps_needs_no_layout(
    golden, sized_runtime, maps, relative_norm, layout
):
    condition = sized_runtime.encode_condition(maps[layout])
    assert relative_norm(condition, golden.expected[f"condition.{layout}"]) <= TOLERANCE
    inversion = sized_runtime.invert(
        maps[layout].numpy(), steps=4, guidance_scale=1.0, latents=golden.inputs["in.latent"], output_type="latent"
    )
    assert relative_norm(torch.from_numpy(inversion.images), golden.expected["ddim.S4.g1.0.s1.0"]) <= TOLERANCE


# Guided runs cost seconds: there the layouts take turns, one item at a time, beside NCHW with both.
@pytest.mark.parametrize(
    ("run", "layout", "items"),
    [
        (0, "nchw", slice(0, 2)),
        (0, "nhwc", slice(1, 2)),
        (1, "nchw", slice(0, 2)),
        (1, "nhwc", slice(0, 2)),
        (1, "tokens", slice(0, 2)),
        (2, "nchw", slice(0, 2)),
        (2, "tokens", slice(0, 1)),
    ],
)
def test_ddim_latents(golden, runtimes, maps, relative_norm, run, layout, items):
    steps, guidance_scale, strength, guess_mode = golden.runs[run]
    expected = golden.expected[f"ddim.S{steps}.g{guidance_scale}.s{strength}" + (".guess" if guess_mode else "")][items]
    latents = {}
    for backend, runtime in runtimes.items():
        inversion = runtime.invert(
            maps[layout][items],
            layout=layout,
            sampler="ddim",
            steps=steps,
            guidance_scale=guidance_scale,
            strength=strength,
            guess_mode=guess_mode,
            latents=golden.inputs["in.latent"][items],
            output_type="latent",
        )
        assert not inversion.errors
        assert (inversion.flags.backend, inversion.flags.steps) == (backend, steps)
        latents[backend] = torch.from_numpy(inversion.images)
        assert relative_norm(latents[backend], expected) <= TOLERANCE
    assert relative_norm(latents["torch"], latents["onnxruntime"]) <= 1e-4
    assert (latents["torch"] - latents["onnxruntime"]).abs().max() <= 1e-4


def test_the_runs_cover_guidance_no_guidance_and_guess_mode(golden):
    assert golden.runs == ((10, 1.75, 1.0, False), (4, 1.0, 1.0, False), (10, 1.75, 0.8, True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_decoded_image(golden, runtimes, relative_norm, backend):
    latents = golden.inputs["in.decode"]
    image = runtimes[backend].decode(latents.numpy(), output_type="torch")
    assert relative_norm(image, golden.expected["decode.image"]) <= TOLERANCE
    pixels = runtimes[backend].decode(latents)
    difference = np.abs(pixels.astype(int) - golden.expected["decode.uint8"].numpy().astype(int))
    assert pixels.dtype == np.uint8
    assert difference.max() <= 1
    assert (difference != 0).mean() <= 1e-3


def test_the_backends_decode_alike(golden, runtimes):
    images = [runtime.decode(golden.inputs["in.decode"], output_type="float") for runtime in runtimes.values()]
    assert np.abs(images[0] - images[1]).max() <= 1e-4
