"""The AOTInductor backend on the smallest architecture, and every reason why it does not serve.

golden_aoti.py beside it holds a larger one against the official code.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featinv_fast import Runtime
from featinv_fast.backends import Request, load, reasons_against
from featinv_fast.backends.aoti_ import target_problems
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder, open_engine
from featinv_fast.engine.trust import CACHE_VARIABLE
from featinv_fast.errors import BackendUnavailableError, EngineIntegrityError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOLERANCE = 2e-5
# Those of the golden latents.
RUNS = (
    {"steps": 10, "guidance_scale": 1.75},
    {"steps": 4, "guidance_scale": 1.0},
    {"steps": 10, "guidance_scale": 1.75, "strength": 0.8, "guess_mode": True},
)


@pytest.fixture(scope="module")
def engine(aoti_engine) -> EngineFolder:
    return open_engine(aoti_engine)


@pytest.fixture(scope="module")
def runtime(engine) -> Runtime:
    return Runtime(engine, backend="aoti")


def with_target(engine: EngineFolder, **changes: str) -> EngineFolder:
    """The engine as if its packages had been compiled for something else."""
    assert engine.manifest.aoti is not None
    aoti = dataclasses.replace(engine.manifest.aoti, **changes)
    return dataclasses.replace(engine, manifest=dataclasses.replace(engine.manifest, aoti=aoti))


def reasons(engine: EngineFolder, device: torch.device = CPU, **options: object) -> list[str]:
    return reasons_against(Request(engine=engine, device=device, **options))["aoti"]


@pytest.fixture(scope="module")
def plain(engine) -> Runtime:
    return Runtime(engine, backend="torch")


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("options", RUNS)
def test_latents(tiny_maps, latents, runtime, plain, relative_norm, options):
    given = {"latents": latents, "sampler": "ddim", "output_type": "latent", **options}
    expected = plain.invert(tiny_maps[:3], **given)
    inversion = runtime.invert(tiny_maps[:3], **given)
    assert (inversion.flags.backend, expected.flags.backend) == ("aoti", "torch")
    assert relative_norm(torch.from_numpy(inversion.images), torch.from_numpy(expected.images)) <= TOLERANCE


def test_image(latents, runtime, plain, relative_norm):
    image, expected = (one.decode(latents, output_type="torch") for one in (runtime, plain))
    assert relative_norm(image, expected) <= TOLERANCE
    difference = np.abs(runtime.decode(latents).astype(int) - plain.decode(latents).astype(int))
    assert difference.max() <= 1
    assert (difference != 0).mean() <= 1e-3


@pytest.mark.parametrize("batch", [1, 2, 5])  # the packages were compiled at a batch of 3
def test_b13_every_batch_size_and_any_strides(engine, relative_norm, batch):
    compiled = load(Request(engine=engine, device=CPU, threads=1), "aoti")
    plain = load(Request(engine=engine, device=CPU, threads=1), "torch")
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(1)
    for name in ("condition_encoder", "time_embedding", "denoiser_unguided"):
        shapes = engine.graph_specs()[name].input_shapes(
            {"batch": batch, "steps": batch, "height": 4 + batch, "width": 17}
        )
        inputs = [torch.randn(shape, generator=generator) for shape in shapes.values()]
        expected = plain.run(name, *inputs)
        output = compiled.run(name, *inputs)
        kept = output.clone()
        assert output.shape == expected.shape
        assert relative_norm(output, expected) <= 1e-5
        strided = [x.flip(-1).contiguous().flip(-1) if x.ndim < 2 else x.mT.contiguous().mT for x in inputs]
        assert relative_norm(compiled.run(name, *strided), expected) <= 1e-5
        compiled.run(name, *(x + 1 for x in inputs))
        assert torch.equal(output, kept)
    assert torch.get_num_threads() == threads


def test_b11_packages_hold_no_weights_and_share_those_of_the_file(engine):
    packages = [engine.path / name for name in engine.manifest.files if name.endswith(".pt2")]
    assert len(packages) == 5
    weights = {tensor.numpy().tobytes() for tensor in load_file(engine.path / "weights.safetensors").values()}
    weights = {content for content in weights if len(content) >= 64}
    assert len(weights) > 100
    for path in packages:
        with zipfile.ZipFile(path) as package:
            content = b"".join(package.read(name) for name in package.namelist())
        assert not [weight for weight in weights if weight in content]
    session = load(Request(engine=engine, device=CPU), "aoti")
    assert set(session._models) == set()
    session.run("decoder", torch.zeros(1, 4, 8, 8))
    # Read where the file is mapped: zeros in memory that the session holds are what the package computes with.
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        session._weights[name].zero_()
    assert session.run("decoder", torch.zeros(1, 4, 8, 8)).abs().max() == 0


def test_packages_need_neither_our_code_nor_a_compiler(latents, plain, aoti_engine, relative_norm, tmp_path: Path):
    save_file({"latents": latents}, tmp_path / "in.safetensors")
    code = """
import sys
sys.modules["featinv_fast"] = sys.modules["featinv_export"] = None
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
engine, folder = sys.argv[1:]
decoder = torch._inductor.aoti_load_package(engine + "/decoder.pt2")
weights = load_file(engine + "/weights.safetensors")
constants = {name: weights[name] for name in decoder.get_constant_fqns()}
decoder.load_constants(constants, check_full_update=True, user_managed=True)
save_file({"image": decoder(load_file(folder + "/in.safetensors")["latents"])}, folder + "/out.safetensors")
"""
    environment = {**os.environ, "PATH": "", "CXX": "none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    arguments = [sys.executable, "-c", code, str(aoti_engine), str(tmp_path)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    image = load_file(tmp_path / "out.safetensors")["image"]
    assert relative_norm(image, plain.decode(latents, output_type="torch")) <= TOLERANCE


def test_loading_is_silent(engine, capfd, caplog):
    load(Request(engine=engine, device=CPU), "aoti").run("time_embedding", torch.ones(2))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_package_is_run_only_where_it_is_named(engine):
    assert reasons(engine) == []
    assert Runtime(engine).info["backend"] != "aoti"


def test_c6_an_engine_without_packages(tiny_engine):
    bare = open_engine(tiny_engine)
    assert reasons(bare) == ["the engine has no AOTInductor packages: export it with --aoti"]
    with pytest.raises(BackendUnavailableError, match="export it with --aoti"):
        Runtime(bare, backend="aoti")


def test_c6_an_engine_without_one_of_its_packages(engine):
    files = {name: info for name, info in engine.manifest.files.items() if name != "decoder.pt2"}
    fewer = dataclasses.replace(engine, manifest=dataclasses.replace(engine.manifest, files=files))
    assert reasons(fewer) == ["the engine has no AOTInductor packages for decoder: export it with --aoti"]


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [("torch", "2.0.0", "torch"), ("platform", "win32 AMD64", "the platform"), ("target", "sm_90", "the processor")],
)
def test_c4_packages_for_something_else(engine, field, value, what):
    (reason,) = reasons(with_target(engine, **{field: value}))
    assert reason.startswith(f"the packages were compiled for {what} {value}, not ")


def test_c4_packages_for_another_device(engine, monkeypatch):
    assert reasons(with_target(engine, device="cuda")) == ["the packages are for cuda: export with --aoti cpu"]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert reasons(engine, CUDA) == [
        "the packages are for cpu: export with --aoti cuda",
        "this build of torch has no CUDA",
    ]


def test_c4_packages_of_another_gpu(engine, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    given = with_target(engine, device="cuda", target="sm_80")
    assert reasons(given, CUDA) == [
        "the packages were compiled for the processor sm_80, not sm_90: export with --aoti here"
    ]
    assert reasons(with_target(engine, device="cuda", target="sm_90"), CUDA) == []


def test_c4_another_precision(engine):
    assert reasons(engine, precision=Precision.FP16) == [
        "the packages are fp32, not fp16: export with --precision fp16"
    ]
    assert reasons(engine, precision=Precision.FP32) == []


def test_c6_a_cpu_that_cannot_run_the_code(engine, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert reasons(engine) == target_problems(CPU)
    assert "AVX2" in target_problems(CPU)[0]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "linux x86_64, not darwin" in target_problems(CPU)[0]


def test_c3_packages_that_were_not_made_here_need_trust(engine, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (reason,) = reasons(engine)
    assert "not built here" in reason
    assert "decoder.pt2" in reason
    with pytest.raises(BackendUnavailableError, match="native code"):
        load(Request(engine=engine, device=CPU), "aoti")
    assert reasons(engine, trust_engine=True) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("what", [".", "decoder.pt2"])
def test_c3_a_folder_or_package_that_others_may_write_to_needs_trust(aoti_engine, restage, tmp_path, what):
    other = open_engine(restage(aoti_engine, tmp_path / "open.engine"))
    path = other.path / what
    path.chmod(path.stat().st_mode | 0o002)
    assert reasons(other) == [f"others than the owner may write to {path.name}: change the permissions"]
    assert reasons(other, trust_engine=True) == []


@pytest.mark.parametrize("damage", ["changed", "longer", "shorter", "missing"])
def test_c1_a_damaged_package_never_reaches_torch(aoti_engine, restage, tmp_path, monkeypatch, damage):
    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("torch was given a file of a damaged engine")

    package = restage(aoti_engine, tmp_path / "damaged.engine") / "denoiser.pt2"
    content = package.read_bytes()
    middle = len(content) // 2
    package.unlink()
    if damage != "missing":
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        package.write_bytes({"changed": changed, "longer": content + b"\0", "shorter": content[:-1]}[damage])
    monkeypatch.setattr(torch._inductor, "aoti_load_package", parsed)
    with pytest.raises(EngineIntegrityError, match=r"denoiser\.pt2"):
        Runtime(package.parent, backend="aoti")


def test_c8_nothing_opens_a_socket(engine, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    image = Runtime(engine, backend="aoti").decode(torch.zeros(1, 4, 8, 8), output_type="torch")
    assert image.isfinite().all()


def test_a_file_that_is_no_package_is_refused(aoti_engine, restage, tmp_path):
    other = restage(
        aoti_engine, tmp_path / "broken.engine", lambda folder: (folder / "decoder.pt2").write_bytes(b"no package")
    )
    session = load(Request(engine=open_engine(other), device=CPU, trust_engine=True), "aoti")
    with pytest.raises(EngineIntegrityError, match=r"decoder\.pt2") as caught:
        session.run("decoder", torch.zeros(1, 4, 8, 8))
    assert "TMPDIR" in caught.value.remedy


def test_a_package_of_other_weights_is_refused(aoti_engine, restage, tmp_path):
    def swap(folder: Path) -> None:
        (folder / "decoder.pt2").write_bytes((folder / "condition_encoder.pt2").read_bytes())
        tensors = load_file(folder / "weights.safetensors")
        save_file({name: t for name, t in tensors.items() if "condition_encoder" not in name}, folder / "w")
        (folder / "w").replace(folder / "weights.safetensors")

    other = open_engine(restage(aoti_engine, tmp_path / "swapped.engine", swap))
    with pytest.raises(EngineIntegrityError, match=r"weights of the engine .* are not those of the architecture"):
        load(Request(engine=other, device=CPU, trust_engine=True), "aoti").run("decoder", torch.zeros(1, 4, 8, 8))


def test_c1_an_engine_that_was_replaced_is_not_read_on(aoti_engine, restage, tmp_path):
    path = restage(aoti_engine, tmp_path / "first.engine")
    session = load(Request(engine=open_engine(path), device=CPU), "aoti")
    restage(aoti_engine, path, name="second")
    with pytest.raises(EngineIntegrityError, match="replaced"):
        session.run("decoder", torch.zeros(1, 4, 8, 8))
