"""The built-in engines on every backend of a CPU: the packages, which they do not ship, are made here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from featinv_export import parity, targets
from featinv_export.aoti_packages import write_packages
from featinv_export.progress import Steps
from featinv_export.stored import stored_cases
from featinv_export.targets.aoti_ import AotiTarget
from featinv_export.targets.onnx_ import OnnxTarget
from featinv_export.weights import weight_index
from featinv_fast import Runtime, demo
from featinv_fast.backends.aoti_ import target_here
from featinv_fast.backends.torch_ import WEIGHT_FILE, TorchSession
from featinv_fast.engine import EngineFolder, open_engine

CPU = torch.device("cpu")
BACKENDS = ("torch", "onnxruntime", "aoti")
# A change of summation order alone moves outputs by 2e-6.
TOLERANCE = 2e-5
STEPS = {"student": 4, "teacher": 10}


@pytest.fixture(scope="module")
def engines(restage, tmp_path_factory) -> dict[str, EngineFolder]:
    """Both engines with AOTInductor packages, made once: they hold no weights."""
    folder = tmp_path_factory.mktemp("built_in")
    first, *others = demo.ENGINES
    manifest = demo.load_engine(first).manifest

    def make(stage: Path) -> None:
        session = TorchSession(manifest.model, stage / WEIGHT_FILE, device=CPU, precision=manifest.precision)
        write_packages(session.graphs, manifest.graph_specs(), CPU, stage, lambda _: None)

    def copy(stage: Path) -> None:
        assert weight_index(stage) == weight_index(folder / first)
        for path in (folder / first).glob("*.pt2"):
            shutil.copyfile(path, stage / path.name)

    aoti = target_here(CPU)
    restage(demo.engine_path(first), folder / first, make, aoti=aoti)
    for name in others:
        restage(demo.engine_path(name), folder / name, copy, aoti=aoti)
    return {name: open_engine(folder / name) for name in demo.ENGINES}


# One test, because parallel test processes would each compile the packages.
def test_every_backend_agrees_on_every_graph_and_on_images(engines, relative_norm):
    features = demo.load_scenes(3).features
    for name, engine in engines.items():
        manifest = engine.manifest
        candidate = parity.Candidate.of_engine(manifest, engine.path)
        compared = targets.compare(candidate, stored_cases(candidate), [OnnxTarget(), AotiTarget(CPU)], Steps(0))
        assert {(row.graph, row.backend, row.batch) for row in compared} == {
            (graph, backend, batch) for graph in manifest.graph_specs() for backend in BACKENDS for batch in (1, 2)
        }
        assert {row.status for row in compared} == {"passed"}
        assert max(row.relative for row in compared) <= TOLERANCE

        latents, images = {}, {}
        for backend in BACKENDS:
            runtime = Runtime(engine, backend=backend, device="cpu", trust_engine=True)
            inversion = runtime.invert(features, steps=STEPS[name], output_type="latent")
            assert (inversion.flags.backend, inversion.flags.sampler) == (backend, manifest.sampling.sampler)
            latents[backend] = torch.from_numpy(inversion.images)
            images[backend] = runtime.decode(latents["torch"]).astype(int)
        for backend in BACKENDS[1:]:
            assert relative_norm(latents[backend], latents["torch"]) <= TOLERANCE
            difference = np.abs(images[backend] - images["torch"])
            assert difference.max() <= 1
            assert (difference != 0).mean() <= 1e-3
