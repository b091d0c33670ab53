"""A small manifest and a small engine: real structure, fake weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from featinv_fast.config import AutoencoderConfig, FeatureSpec, ModelConfig, Precision, SamplingConfig
from featinv_fast.engine import (
    Exactness,
    Manifest,
    OptionInfo,
    ParityInfo,
    ParityStatus,
    PromptInfo,
    SourceInfo,
    Stage,
    open_engine,
    staging,
)

FILES = {
    "weights.safetensors": bytes(range(256)) * 5,
    "denoiser.onnx": b"a graph",
    "denoiser.plan": b"a plan",
    "denoiser.pt2": b"a package",
    "empty.bin": b"",
    "README.md": b"# An engine\n",
}


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        name="old",
        created="2025-05-01T12:00:00+00:00",
        model=ModelConfig(
            latent_size=8,
            channels=32,
            feature_channels=24,
            autoencoder=AutoencoderConfig(channel_multipliers=(1, 2)),
        ),
        features=FeatureSpec(channels=24, backbone="convnext_base", std=(1.0, 1.0, 1.0)),
        sampling=SamplingConfig(steps=4),
        precision=Precision.FP16,
        kept_fp32=("condition_encoder.conv1.weight",),
        prompts=PromptInfo(cond="a photo, 写真", source="checkpoint"),
        time_bias_size=96,
        max_batch=16,
        optimal_batch=4,
        rewrites=(OptionInfo(name="constant prompts", exactness=Exactness.EXACT),),
        adaptations=("lcm-lora.safetensors",),
        parity=(
            ParityInfo(
                graph="denoiser",
                backend="onnxruntime",
                batch=2,
                status=ParityStatus.PASSED,
                max_abs=1e-6,
                relative=2e-7,
                tolerance=2e-5,
            ),
            ParityInfo(
                graph="decoder", backend="tensorrt", batch=2, status=ParityStatus.NOT_RUN, reason="there is no GPU"
            ),
        ),
        source=SourceInfo(file_name="model.ckpt", sha256="0" * 64, layout="ldm"),
        tools={"torch": "2.15.0"},
    )


@pytest.fixture
def engine(tmp_path: Path, manifest: Manifest) -> Path:
    """An installed engine called "old", alone in its parent folder."""
    with staging(tmp_path / "engines" / "small") as stage:
        for name, content in FILES.items():
            (stage.path / name).write_bytes(content)
        stage.finish(manifest)
    return tmp_path / "engines" / "small"


@pytest.fixture
def export(manifest: Manifest) -> Callable[..., Path]:
    """A small export, with whatever happens `during` it."""

    def export(
        destination: str | Path,
        name: str = "new",
        during: Callable[[Stage], object] = lambda _: None,
        **options: bool,
    ) -> Path:
        with staging(destination, **options) as stage:
            (stage.path / "weights.safetensors").write_text(name)
            during(stage)
            return stage.finish(dataclasses.replace(manifest, name=name))

    return export


@pytest.fixture
def assert_untouched(engine: Path) -> Callable[[], None]:
    """Asserts that the engine called "old" is whole and alone in its folder."""

    def assert_untouched() -> None:
        assert open_engine(engine).manifest.name == "old"
        assert [entry.name for entry in engine.parent.iterdir()] == [engine.name]

    return assert_untouched
