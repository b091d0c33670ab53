"""Arguments of `invert` outside their range, and how defaults are found."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featinv_fast import Runtime
from featinv_fast.backends import BACKENDS
from featinv_fast.checks import count, finite, options
from featinv_fast.config import ModelConfig, SamplingConfig
from featinv_fast.engine import open_engine
from featinv_fast.errors import ArgumentError, ArgumentTypeError, BackendUnavailableError
from featinv_fast.runtime.arguments import LARGEST_SEED, seeds
from featinv_fast.runtime.graph_loop import CudaGraphs
from featinv_fast.runtime.sampling import control_scales
from featinv_fast.samplers import SAMPLERS, USUAL_STEPS, resolve
from featinv_kernels import OPS


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"steps": 0}, "1 to 1000"),
        ({"steps": -3}, "1 to 1000"),
        ({"steps": 1001}, "1 to 1000"),
        ({"steps": 51, "sampler": "lcm"}, "1 to 50"),
        ({"sampler": "euler"}, "ddim"),
        ({"sampler": ["ddim"]}, "lcm"),
        ({"guidance_scale": math.nan}, "finite"),
        ({"guidance_scale": -math.inf}, "finite"),
        ({"strength": math.inf}, "finite"),
        ({"eta": 1.5}, "0 to 1"),
        ({"eta": -0.1}, "0 to 1"),
        ({"eta": math.nan}, "0 to 1"),
        ({"eta": 0.5, "sampler": "lcm"}, "eta=0.0"),
        ({"samples": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"seed": -1}, r"0 to 2\*\*63"),
        ({"seed": 2**63}, r"0 to 2\*\*63"),
        ({"seed": LARGEST_SEED}, r"0 to 2\*\*63"),  # the second row's would be beyond
        ({"seed": [1, 2, 3]}, "2, or one"),
        ({"seed": []}, "2, or one"),
        ({"output_type": "png"}, "latent"),
        ({"errors": "ignore"}, "return"),
        ({"layout": "chw"}, "nchw"),
        ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, r"\[2, 4, 8, 8\]"),
        ({"latents": np.full((2, 4, 8, 8), np.nan, np.float32)}, "finite"),
    ],
)
def test_a11_a_value_out_of_range_names_the_range(own_runtime, watch, tiny_maps, options, allowed):
    calls = []
    watch(own_runtime, lambda graph, _: calls.append(graph))
    with pytest.raises(ArgumentError, match=f"expected: .*{allowed}") as caught:
        own_runtime.invert(tiny_maps[:2], **options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.given is not None
    assert calls == []


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 2.0},
        {"steps": True},
        {"steps": "10"},
        {"samples": 1.5},
        {"batch_size": "8"},
        {"seed": 1.0},
        {"seed": [1, None]},
        {"seed": "12"},
        {"guidance_scale": "1.75"},
        {"guidance_scale": True},
        {"strength": None},
        {"strength": [1.0, 2.0]},
        {"eta": "0"},
        {"latents": "noise"},
    ],
)
def test_a11_a_value_of_another_type_is_refused(runtimes, tiny_maps, options):
    with pytest.raises(ArgumentTypeError) as caught:
        runtimes["torch"].invert(tiny_maps[:2], **options)
    assert isinstance(caught.value, TypeError)
    assert caught.value.expected


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"device": "gpu"}, {"backend": "tflite"}, {"threads": 0}])
def test_a11_of_the_runtime_itself(tiny_engine, options):
    with pytest.raises(ArgumentError, match="expected: "):
        Runtime(tiny_engine, **options)


@given(value=st.floats() | st.integers() | st.just(10**400))
def test_a11_every_number_is_taken_as_it_is_or_refused(value):
    if abs(value) <= sys.float_info.max:  # false for NaN
        assert finite("strength", value) == float(value)
    else:
        with pytest.raises(ArgumentError):
            finite("strength", value)


@given(first=st.integers(-(2**70), 2**70), rows=st.integers(0, 5))
def test_a11_seeds_are_consecutive_and_in_range_or_refused(first, rows):
    if rows and not 0 <= first <= first + rows - 1 <= LARGEST_SEED:
        with pytest.raises(ArgumentError):
            seeds(first, rows)
    else:
        assert seeds(first, rows) == tuple(range(first, first + rows))


@settings(max_examples=50)
@given(value=st.integers(-(2**70), 2**70))
def test_a11_a_count_is_a_positive_integer(value):
    if value >= 1:
        assert count("samples", value) == value
    else:
        with pytest.raises(ArgumentError):
            count("samples", value)


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_numpy_and_torch_are_integers(number):
    assert count("samples", number) == 3
    assert seeds(number, 2) == (3, 4)


def test_every_sampler_has_a_usual_number_of_steps():
    assert set(USUAL_STEPS) == set(SAMPLERS)


def test_unnamed_settings_are_the_engines_own(tiny_engine, restage, tmp_path, tiny_maps):
    sampling = SamplingConfig(sampler="dpm++2m", steps=2, guidance_scale=3.0)
    engine = restage(tiny_engine, tmp_path / "other.engine", sampling=sampling)
    runtime = Runtime(engine, backend="torch")
    flags = runtime.invert(tiny_maps[:1], output_type="latent").flags
    assert (flags.sampler, flags.steps, flags.guidance_scale) == ("dpm++2m", 2, 3.0)
    named = runtime.invert(tiny_maps[:1], sampler="dpm++2m", steps=2, guidance_scale=3.0)
    assert np.array_equal(named.latents, runtime.invert(tiny_maps[:1]).latents)
    flags = runtime.invert(tiny_maps[:1], steps=5, guidance_scale=0.5, output_type="latent").flags
    assert (flags.sampler, flags.steps, flags.guidance_scale) == ("dpm++2m", 5, 0.5)
    assert dataclasses.replace(open_engine(engine).manifest.sampling) == sampling


def test_the_unconditional_branch_may_be_without_features(tiny_engine, restage, tmp_path, tiny_maps):
    sampling = SamplingConfig(steps=2, guidance_scale=3.0, unconditional_strength=0.0)
    free = Runtime(restage(tiny_engine, tmp_path / "free.engine", sampling=sampling), backend="torch")
    official = Runtime(tiny_engine, backend="torch")
    options = {"steps": 2, "guidance_scale": 3.0, "sampler": "ddim", "output_type": "latent"}
    latents = free.invert(tiny_maps[:1], output_type="latent").latents
    asked = official.invert(tiny_maps[:1], unconditional_strength=0.0, **options).latents
    assert np.array_equal(latents, asked)
    assert not np.allclose(latents, official.invert(tiny_maps[:1], **options).latents)
    assert np.array_equal(
        free.invert(tiny_maps[:1], unconditional_strength=1.0, output_type="latent").latents,
        official.invert(tiny_maps[:1], **options).latents,
    )
    # It is a share of the strength, and guess mode has none of it in any case.
    torch.testing.assert_close(
        control_scales(3, branches=2, strength=0.5, guess_mode=False, unconditional_strength=0.4),
        torch.tensor([[0.5] * 3, [0.2] * 3]),
    )
    guess = control_scales(3, branches=2, strength=0.5, guess_mode=True, unconditional_strength=0.4)
    assert not guess[1].any()


def test_another_sampler_takes_its_usual_steps_not_the_engines():
    defaults = SamplingConfig(sampler="ddim", steps=50)
    for asked, steps in (
        ({}, 50),
        ({"sampler": "lcm"}, 4),
        ({"sampler": "dpm++2m"}, 20),
        ({"sampler": "lcm", "steps": 7}, 7),
    ):
        assert len(resolve(defaults, ModelConfig(), **asked).table) == steps


REFUSED = [
    ({"unconditional_strength": 0.5, "guidance_scale": 1.0}, "no unconditional branch with guidance_scale=1"),
    ({"unconditional_strength": 0.5, "guidance_scale": 3.0, "guess_mode": True}, "guess mode gives"),
    ({"latents": None, "seed": 3}, "latents are the start noise"),
    ({"latents": None, "seed": [0]}, "latents are the start noise"),
    ({"eta": 0.5, "sampler": "dpm++2m"}, "has no eta"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_options_that_would_have_no_effect_are_refused(tiny_engine, tiny_maps, options, says):
    runtime = Runtime(tiny_engine, backend="torch")
    if "latents" in options:
        options = {**options, "latents": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ArgumentError, match=says) as caught:
        runtime.invert(tiny_maps[:1], steps=1, **options)
    assert "leave " in caught.value.remedy


@pytest.mark.parametrize(
    "options",
    [
        {"unconditional_strength": 1.0, "guidance_scale": 1.0},  # neutral
        {"guess_mode": True, "guidance_scale": 1.0},  # weakens the residuals in the one branch
        {"latents": torch.zeros(1, 4, 8, 8), "seed": 0},
        {"latents": torch.zeros(1, 4, 8, 8), "seed": 3, "eta": 1.0, "steps": 2},  # the steps draw noise
        {"strength": 1.0, "eta": 0.0},
    ],
)
def test_neutral_values_and_what_has_an_effect_are_taken(tiny_engine, tiny_maps, options):
    runtime = Runtime(tiny_engine, backend="torch", threads=1)
    assert runtime.invert(tiny_maps[:1], output_type="latent", **{"steps": 1, **options}).ok.all()


def test_the_engines_own_defaults_are_not_options_that_were_given():
    own = SamplingConfig(guidance_scale=1.0, unconditional_strength=0.0)
    assert resolve(own, ModelConfig()).unconditional_strength == 0.0
    assert resolve(own, ModelConfig(), unconditional_strength=0.0).guidance_scale == 1.0
    embedded = ModelConfig(guidance_embedding_channels=256)
    with pytest.raises(ArgumentError, match="takes the guidance scale as an input"):
        resolve(SamplingConfig(), embedded, unconditional_strength=0.5)
    with pytest.raises(ArgumentTypeError, match="guess_mode"):
        resolve(own, ModelConfig(), guess_mode="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option", [{"compiled": True}, {"two_streams": True}, {"cuda_graphs": "step"}, {"kernels": "x"}]
)
def test_options_of_the_torch_backend_are_refused_on_others(tiny_engine, option):
    with pytest.raises(ArgumentError, match="would have no effect: the backend is 'onnxruntime'"):
        Runtime(tiny_engine, backend="onnxruntime", **option)


def test_an_option_of_tensorrt_rtx_is_refused_on_others(tiny_engine):
    with pytest.raises(ArgumentError, match="specialization would have no effect: the backend is 'torch'"):
        Runtime(tiny_engine, backend="torch", specialization="lazy")
    with pytest.raises(ArgumentError, match="specialization"):
        Runtime(tiny_engine, specialization="never")
    with pytest.raises(BackendUnavailableError) as caught:  # it is not dropped where another backend would serve
        Runtime(tiny_engine, specialization="lazy")
    for name in ("torch", "onnxruntime"):
        assert caught.value.reasons[name] == ["it compiles no kernels for shapes, asked for specialization lazy"]
    assert Runtime(tiny_engine, backend="torch").info["specialization"] is None


def test_what_contradicts_is_refused_before_the_engine_is_opened():
    with pytest.raises(ArgumentError, match="would have no effect: the backend 'tensorrt' computes on a GPU"):
        Runtime("missing.engine", backend="tensorrt", threads=2)
    with pytest.raises(ArgumentError, match="one stream"):
        Runtime("missing.engine", compiled=True, two_streams=True)
    with pytest.raises(ArgumentError, match="did you mean onnxruntime"):
        Runtime("missing.engine", backend="onnxruntme")


def test_names_known_before_torch_are_those_of_the_modules_that_need_it():
    assert tuple(BACKENDS) == options.BACKENDS
    assert tuple(CudaGraphs) == options.CUDA_GRAPHS
    layers = {name: tuple(one.name for one in OPS[name].providers) for name in options.LAYER_OPS}
    assert layers == options.LAYER_OPS
