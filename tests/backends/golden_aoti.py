"""The AOTInductor backend on the golden checkpoint: `pytest tests/backends/golden_aoti.py`.

Not part of a run of all tests: compiling takes nine minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_fast import Runtime

pytestmark = pytest.mark.timeout(3600)
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def runtime(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    options = ExportOptions(checkpoint=golden_checkpoint, out=tmp_path_factory.mktemp("aoti") / "engine", aoti="cpu")
    return Runtime(export(options), backend="aoti")


@pytest.mark.parametrize("run", [0, 1, 2])
def test_golden_latents(golden, runtime, relative_norm, run):
    steps, guidance_scale, strength, guess_mode = golden.runs[run]
    expected = golden.expected[f"ddim.S{steps}.g{guidance_scale}.s{strength}" + (".guess" if guess_mode else "")]
    inversion = runtime.invert(
        golden.inputs["in.features"],
        sampler="ddim",
        steps=steps,
        guidance_scale=guidance_scale,
        strength=strength,
        guess_mode=guess_mode,
        latents=golden.inputs["in.latent"],
        output_type="latent",
    )
    assert inversion.flags.backend == "aoti"
    assert relative_norm(torch.from_numpy(inversion.images), expected) <= TOLERANCE


def test_golden_image(golden, runtime, relative_norm):
    image = runtime.decode(golden.inputs["in.decode"], output_type="torch")
    assert relative_norm(image, golden.expected["decode.image"]) <= TOLERANCE
    difference = np.abs(
        runtime.decode(golden.inputs["in.decode"]).astype(int) - golden.expected["decode.uint8"].numpy().astype(int)
    )
    assert difference.max() <= 1
    assert (difference != 0).mean() <= 1e-3


def test_packages_are_small_beside_the_weights(runtime):
    files = runtime.engine.manifest.files
    packages = [info.size for name, info in files.items() if name.endswith(".pt2")]
    assert len(packages) == 5
    assert sum(packages) < files["weights.safetensors"].size / 4
