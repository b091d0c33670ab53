"""`--aoti`: what an export with AOTInductor packages writes, and what it refuses before any work."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import featinv_export
import featinv_fast
from featinv_export import cli, exporter, parity, targets
from featinv_export.aoti_packages import compile_graph, require_compiler
from featinv_export.options import ExportOptions
from featinv_export.progress import Steps
from featinv_export.refit import refit
from featinv_export.targets.aoti_ import AotiTarget
from featinv_export.weights import weight_index
from featinv_fast.backends import Request, load
from featinv_fast.backends.compiler import quiet_torch
from featinv_fast.engine import open_engine
from featinv_fast.engine.graphs import Dim, GraphSpec, TensorSpec
from featinv_fast.engine.trust import CACHE_VARIABLE
from featinv_fast.errors import ArgumentError, ExportError, MissingPackageError, ParityError
from featinv_fast.rewrites.upsample_products import is_kernel

GRAPHS = ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
CPU = torch.device("cpu")
SPEC = GraphSpec("scale", (TensorSpec("x", ("batch", 4)),), TensorSpec("y", ("batch", 4)), (Dim("batch", 1, 1, 8),))


def test_the_manifest_says_what_the_packages_are_for(aoti_engine):
    manifest = open_engine(aoti_engine).manifest
    assert manifest.aoti is not None
    assert (manifest.aoti.device, manifest.aoti.target) == ("cpu", "x86-64-v3")
    assert (manifest.aoti.platform, manifest.aoti.torch) == ("linux x86_64", torch.__version__)
    assert {name for name in manifest.files if name.endswith(".pt2")} == {f"{graph}.pt2" for graph in GRAPHS}
    card = (aoti_engine / "README.md").read_text()
    assert f"(AOTInductor for x86-64-v3 with torch {torch.__version__}, weights in `weights.safetensors`)" in card


def test_b13_every_graph_was_compared_at_two_batch_sizes(aoti_engine):
    rows = [info for info in open_engine(aoti_engine).manifest.parity if info.backend == "aoti"]
    assert {(info.graph, info.batch) for info in rows} == {(graph, batch) for graph in GRAPHS for batch in (1, 2)}
    assert all(info.status == "passed" and info.relative <= info.tolerance == 2e-5 for info in rows)


def test_b12_a_package_that_computes_something_else_fails(aoti_engine, tmp_path):
    engine = open_engine(aoti_engine)
    candidate = parity.Candidate(
        folder=engine.path,
        config=engine.manifest.model,
        specs=engine.graph_specs(),
        precision=engine.manifest.precision,
        kept_fp32=engine.manifest.kept_fp32,
    )
    timesteps = torch.tensor([481.0, 1.0])
    rows = load(Request(engine=engine, device=CPU), "torch").run("time_embedding", timesteps)
    for factor, status in ((1.0, "passed"), (1.0001, "failed")):
        case = parity.Case("time_embedding", 2, (timesteps,), rows * factor)
        results = targets.compare(candidate, [case], [AotiTarget(CPU)], Steps(0))
        assert {(result.backend, result.status) for result in results} == {("torch", status), ("aoti", status)}
    with pytest.raises(ParityError, match="2 of 2 comparisons"):
        parity.require_passed(results, tmp_path / "report.json")


@pytest.mark.parametrize("graph", GRAPHS)
def test_packages_are_compiled_for_a_named_cpu_and_hold_no_sources(aoti_engine, graph):
    with zipfile.ZipFile(aoti_engine / f"{graph}.pt2") as package:
        names = package.namelist()
        (metadata,) = (json.loads(package.read(name)) for name in names if name.endswith("wrapper_metadata.json"))
        (library,) = (package.read(name) for name in names if name.endswith(".so"))
    assert not [name for name in names if name.endswith((".cpp", ".py", ".h"))]
    assert metadata["AOTI_CPU_ISA"] == "AVX2"
    # Linkers name the folder of torch's libraries, which may lie in a checkout; where our sources are concerns nobody.
    for ours in (featinv_fast, featinv_export):
        assert os.fsencode(Path(ours.__path__[0])) not in library


def test_every_stored_weight_but_kernels_is_read_by_a_package_and_none_is_compiled_into_one(aoti_engine):
    read: set[str] = set()
    with quiet_torch():
        for graph in GRAPHS:
            read |= {*torch._inductor.aoti_load_package(str(aoti_engine / f"{graph}.pt2")).get_constant_fqns()}
    assert read == {name for name in weight_index(aoti_engine) if not is_kernel(name)}


@pytest.fixture
def other_checkpoint(aoti_checkpoint, tmp_path) -> Path:
    """The engine's checkpoint with one weight changed."""
    with safe_open(aoti_checkpoint, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(aoti_checkpoint)
    tensors["autoencoder.decoder.conv_out.bias"] += 1.0
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    return tmp_path / "other.safetensors"


def test_another_checkpoint_needs_no_other_packages(aoti_engine, other_checkpoint, tmp_path):
    out = refit(aoti_engine, ExportOptions(checkpoint=other_checkpoint, out=tmp_path / "other.engine"))
    before, after = open_engine(aoti_engine), open_engine(out)
    assert after.manifest.aoti == before.manifest.aoti
    for graph in GRAPHS:
        assert after.manifest.files[f"{graph}.pt2"] == before.manifest.files[f"{graph}.pt2"]
    rows = [info for info in after.manifest.parity if info.backend == "aoti"]
    assert [info.status for info in rows] == ["passed"] * 10
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    old, new = (load(Request(engine=engine, device=CPU), "aoti").run("decoder", latents) for engine in (before, after))
    assert torch.allclose(new, old + 1.0, atol=1e-5)


def test_packages_that_cannot_be_run_are_kept_and_said_not_to_be_checked(
    aoti_engine, other_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "empty"))
    options = ExportOptions(checkpoint=other_checkpoint, out=tmp_path / "other.engine")
    with pytest.raises(ExportError, match=r"AOTInductor packages: not built here(.|\n)*--unchecked"):
        refit(aoti_engine, options)
    assert not options.out.exists()
    out = refit(aoti_engine, dataclasses.replace(options, unchecked=True))
    manifest = open_engine(out).manifest
    assert manifest.aoti is not None
    rows = [info for info in manifest.parity if info.backend == "aoti"]
    assert [info.status for info in rows] == ["not run"] * 10
    assert all("not built here" in info.reason for info in rows)
    assert set(manifest.unchecked()) == {f"{graph}.pt2" for graph in GRAPHS}


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_c6_without_a_compiler_nothing_is_begun(device, monkeypatch, tmp_path):
    from torch._inductor import config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(MissingPackageError) as caught:
        exporter.export(ExportOptions(checkpoint=tmp_path / "none.safetensors", aoti=device))
    assert "CXX" in caught.value.expected
    assert "g++" in caught.value.remedy


def test_c6_without_the_gpu_nothing_is_begun(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    (tmp_path / "empty.safetensors").touch()
    assert cli.main(["--ckpt", str(tmp_path / "empty.safetensors"), "--aoti", "cuda"]) == 1
    error = capsys.readouterr().err
    assert "packages for the device cuda cannot be made here" in error
    assert "this build of torch has no CUDA" in error


def test_a_cpu_below_the_level_is_refused(monkeypatch):
    require_compiler(CPU)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(ExportError, match="AVX2"):
        require_compiler(CPU)


def test_a_device_that_there_are_no_packages_for():
    with pytest.raises(ArgumentError, match="auto"):
        ExportOptions(checkpoint=Path("x"), aoti="tpu")


@pytest.mark.parametrize(
    ("more", "device"), [([], None), (["--aoti"], "auto"), (["--aoti", "cpu"], "cpu"), (["--aoti", "cuda"], "cuda")]
)
def test_the_command_line(monkeypatch, tmp_path, more, device):
    monkeypatch.chdir(tmp_path)
    Path("c.ckpt").touch()
    given: list[ExportOptions] = []
    monkeypatch.setattr(exporter, "export", lambda options, *_: given.append(options) or Path("engine"))
    assert cli.main(["--ckpt", "c.ckpt", *more]) == 0
    assert given[0].aoti == device


class Scale(nn.Module):
    """Twice its input."""

    def forward(self, x):
        return 2 * x


class FixedBatch(nn.Module):
    """A module that takes the batch it is traced with for a constant."""

    def forward(self, x):
        return x * torch.arange(x.shape[0] + 0)[:3, None]


def test_modules_of_the_same_graph_and_other_sizes_do_not_share_compiled_code(tmp_path, capfd, caplog):
    """Torch names its folders after a graph's text, in which no sizes are."""
    for width in (2, 3):
        module = nn.Linear(4, width).requires_grad_(requires_grad=False)
        spec = dataclasses.replace(SPEC, output=TensorSpec("y", ("batch", width)))
        compile_graph(module, spec, CPU, tmp_path / f"{width}.pt2")
        with quiet_torch():
            package = torch._inductor.aoti_load_package(str(tmp_path / f"{width}.pt2"))
        package.load_constants(module.state_dict(), check_full_update=True, user_managed=True)
        for batch in (1, 3, 8):
            x = torch.linspace(-1, 1, 4 * batch).reshape(batch, 4)
            assert torch.allclose(package(x), module(x), atol=1e-6)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_b13_a_module_that_takes_the_batch_for_a_constant_is_refused(tmp_path):
    with pytest.raises(ExportError, match="cannot compile the graph scale"):
        compile_graph(FixedBatch(), SPEC, CPU, tmp_path / "fixed.pt2")
    assert not (tmp_path / "fixed.pt2").exists()


def test_what_the_compiler_says_is_told(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("cc1plus: planted")

    monkeypatch.setattr(torch._inductor, "aot_compile", fail)
    with pytest.raises(ExportError, match="planted") as caught:
        compile_graph(Scale(), SPEC, CPU, tmp_path / "scale.pt2")
    assert "leave out --aoti" in caught.value.remedy
