"""The ControlNet on a second stream: forked before, joined after, on stand-ins of torch's streams."""

from __future__ import annotations

import contextlib
import copy
from unittest import mock

import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.backends import Request, load, reasons_against
from featinv_fast.backends.torch_ import TorchBackend
from featinv_fast.engine import open_engine
from featinv_fast.errors import BackendUnavailableError
from featinv_fast.rewrites import two_streams
from featinv_fast.rewrites.engine_model import EngineModel
from featinv_fast.rewrites.two_streams import SideBySideDenoiser, side_by_side

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STREAM = torch.cuda.Stream
ALL_CONTROLS = ["record control"] * 5  # of the tiny model


class Streams:
    """Torch's functions for streams, and what happened in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.capturing = False
        self.made = 0
        self._current = "main"
        self.main = self._stream("main")
        monkeypatch.setattr(torch.cuda, "Stream", self._make)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.main)
        monkeypatch.setattr(torch.cuda, "stream", self._entered)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        self.controls: set[int] = set()

        def record(tensor: torch.Tensor, stream: mock.Mock) -> None:
            assert stream is self.main
            self.events.append("record control" if id(tensor) in self.controls else "record something else")

        monkeypatch.setattr(torch.Tensor, "record_stream", record)

    def _stream(self, name: str) -> mock.Mock:
        stream = mock.create_autospec(STREAM, instance=True)
        stream.wait_stream.side_effect = lambda other: self.events.append(f"{name} waits for {other.label}")
        stream.label = name
        return stream

    def _make(self, _device: object) -> mock.Mock:
        self.made += 1
        return self._stream("side")

    @contextlib.contextmanager
    def _entered(self, stream: mock.Mock):
        self._current = stream.label
        yield
        self._current = "main"

    def watch(self, denoiser: torch.nn.Module) -> None:
        """Note on which stream each part of the denoiser begins."""

        def note(name: str):
            return lambda *_: self.events.append(f"{name} on {self._current}")

        def keep(_module, _inputs, controls) -> None:
            self.controls = {id(control) for control in controls}

        denoiser.controlnet.register_forward_pre_hook(note("controlnet"))
        denoiser.controlnet.register_forward_hook(keep)
        denoiser.unet.encoder.register_forward_pre_hook(note("encoder"))
        denoiser.unet.decoder.register_forward_pre_hook(note("decoder"))


@pytest.fixture
def streams(monkeypatch):
    return Streams(monkeypatch)


@pytest.fixture(scope="module")
def model(tiny_config, make_model):
    """An engine's networks in float64."""
    prompts = torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels, dtype=torch.float64)
    return EngineModel(make_model(tiny_config, dtype=torch.float64), prompts)


@pytest.fixture
def beside(model):
    """The same with two streams."""
    changed = copy.deepcopy(model)
    changed.denoiser = side_by_side(changed.denoiser)
    return changed


@pytest.fixture
def inputs(model, tiny_config):
    """Of the guided graph."""
    generator = torch.Generator().manual_seed(1)
    size = tiny_config.latent_size
    latents, condition = (
        torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)
        for channels in (4, tiny_config.channels)
    )
    (row,) = model.graphs()["time_embedding"](torch.tensor([481.0], dtype=torch.float64))
    scales = torch.rand(2, tiny_config.control_count, generator=generator, dtype=torch.float64)
    return latents, condition, row, torch.tensor(1.75, dtype=torch.float64), scales


def test_forked_before_and_joined_after_with_the_same_result(streams, model, beside, inputs):
    graphs = beside.graphs()
    streams.watch(beside.denoiser)
    assert torch.equal(graphs["denoiser"](*inputs), model.graphs()["denoiser"](*inputs))
    assert streams.events == [
        "side waits for main",
        "controlnet on side",
        "encoder on main",
        "main waits for side",
        *ALL_CONTROLS,
        "decoder on main",
    ]
    graphs["denoiser"](*inputs)
    assert streams.made == 1


def test_in_a_capture_nothing_is_recorded(streams, beside, inputs):
    """Memory that is noted for another stream is not used again within a capture."""
    streams.watch(beside.denoiser)
    streams.capturing = True
    beside.graphs()["denoiser"](*inputs)
    assert [event for event in streams.events if "waits" in event] == ["side waits for main", "main waits for side"]
    assert not [event for event in streams.events if "record" in event]


@pytest.mark.parametrize("part", ["controlnet", "encoder"])
def test_an_error_leaves_no_stream_that_nobody_waits_for(streams, beside, inputs, part):
    streams.watch(beside.denoiser)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = beside.denoiser.controlnet if part == "controlnet" else beside.denoiser.unet.encoder
    network.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        beside.graphs()["denoiser"](*inputs)
    assert streams.events[-1] == "main waits for side"


def test_graphs_share_weights_and_no_stream(streams, model, beside, inputs):
    graphs = beside.graphs()
    assert beside.state_dict().keys() == model.state_dict().keys()
    guided, unguided = (dict(graphs[name].named_parameters()) for name in ("denoiser", "denoiser_unguided"))
    assert all(parameter is unguided[name] for name, parameter in guided.items())
    latents, condition, row, _, scales = inputs
    expected = model.graphs()["denoiser_unguided"](latents, condition, row, scales[:1])
    graphs["denoiser"](*inputs)
    assert torch.equal(graphs["denoiser_unguided"](latents, condition, row, scales[:1]), expected)
    assert streams.made == 2


def test_only_an_engines_denoiser_once(tiny_config, make_model, beside):
    for denoiser in (make_model(tiny_config).denoiser, beside.denoiser):
        with pytest.raises(AssertionError, match="not a denoiser of an engine"):
            side_by_side(denoiser)


def test_a_session_takes_it_where_it_is_asked_for(tiny_engine, tiny_maps, streams, monkeypatch):
    plain = Runtime(tiny_engine, backend="torch", threads=1)
    assert plain.info["two_streams"] is False  # off until a GPU has shown that it pays
    monkeypatch.setattr("featinv_fast.backends.torch_.stream_problems", lambda _: [])
    runtime = Runtime(tiny_engine, two_streams=True, threads=1)
    assert (runtime.info["backend"], runtime.info["two_streams"]) == ("torch", True)
    denoiser = runtime._executor.session.graphs["denoiser"].denoiser
    assert isinstance(denoiser, SideBySideDenoiser)
    streams.watch(denoiser)
    options = {"steps": 2, "seed": 1, "output_type": "float"}
    assert (runtime.invert(tiny_maps[:2], **options).images == plain.invert(tiny_maps[:2], **options).images).all()
    assert streams.events.count("controlnet on side") == 2


def test_c6_without_a_gpu_it_is_refused_and_not_left_out(tiny_engine):
    with pytest.raises(BackendUnavailableError) as caught:
        Runtime(tiny_engine, two_streams=True)
    assert caught.value.reasons["torch"] == ["two streams are for NVIDIA GPUs, not for cpu"]
    assert "asked for two_streams" in caught.value.reasons["onnxruntime"][0]
    opened = open_engine(tiny_engine)
    both = Request(engine=opened, device=GPU, two_streams=True, compiled=True)
    assert "compiled graphs run on one stream" in reasons_against(both)["torch"]
    one = Request(engine=opened, device=GPU, two_streams=True)
    assert not any("stream" in reason for reason in TorchBackend().not_supported_reasons(one))
    assert two_streams.stream_problems(GPU) == []
    assert load(Request(engine=opened, device=CPU), "torch").two_streams is False
