"""What holds for an export of every kind, ONNX graphs and AOTInductor packages: where it may write, kills, locks.

Graphs are translated and compiled by stand-ins, which write a few bytes: none of these exports comes to running them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featinv_export import aoti_packages, cli, parity, targets
from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_export.progress import Steps
from featinv_export.targets import onnx_
from featinv_export.tensorrt_ import plans
from featinv_export.tensorrt_.options import RtxOptions
from featinv_fast.engine import install, open_engine
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.engine.plans import RtxPlanInfo
from featinv_fast.errors import EngineExistsError, EngineNotFoundError, ExportError

KINDS = {
    "onnx": {"onnx": True},
    "aoti": {"aoti": "cpu"},
    "rtx": {"onnx": True, "trt_rtx": RtxOptions(capabilities=("8.9",))},
}
# How many files an export of the kind makes.
FILES = {"onnx": 5, "aoti": 5, "rtx": 10}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs and packages that stand-ins have made."""
    names: list[str] = []

    def stand_in(name: str, folder: Path, report: Callable[[str], None]) -> None:
        report(f"making {name}")
        names.append(name)
        (folder / name).write_bytes(b"half")
        report(f"making more of {name}")
        (folder / name).write_bytes(b"a graph or a package")

    def write_graphs(candidate: parity.Candidate, report: Any) -> None:
        for name in candidate.specs:
            stand_in(f"{name}.onnx", candidate.folder, report)

    def write_packages(graphs: object, specs: dict[str, Any], device: object, folder: Path, report: Any) -> None:
        for name in specs:
            stand_in(f"{name}.pt2", folder, report)

    def write_rtx_plans(candidate: parity.Candidate, options: RtxOptions, profiles: Any, steps: Steps) -> Any:
        hashes = {"graph_sha256": "0" * 64, "weights_sha256": "1" * 64}
        common = {"tensorrt_rtx": "1.7.1", "capabilities": options.capabilities, "precision": candidate.precision}
        for name in candidate.specs:
            stand_in(f"{name}.rtxplan", candidate.folder, steps.begin)
        return tuple(RtxPlanInfo(graph=name, profiles=profiles, **common, **hashes) for name in candidate.specs)

    monkeypatch.setattr(plans, "write_rtx_plans", write_rtx_plans)
    monkeypatch.setattr(onnx_, "write_graphs", write_graphs)
    monkeypatch.setattr(aoti_packages, "write_packages", write_packages)
    monkeypatch.setattr(onnx_, "tensorrt_parsers", lambda _: None)
    monkeypatch.setattr(parity, "reference_cases", lambda *_: [])
    monkeypatch.setattr(targets, "compare", lambda *_: ())
    return names


@pytest.fixture
def checkpoint(checkpoint_file) -> Path:
    """The file of the tiny checkpoint."""
    return checkpoint_file()


@pytest.fixture
def old(checkpoint: Path, tmp_path: Path) -> Path:
    """A sound engine called "old"."""
    return export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "engine", name="old"))


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_b8_nothing_is_made_where_an_engine_is(made, checkpoint, old, tmp_path: Path, kind: str):
    with pytest.raises(EngineExistsError, match="force=True"):
        export(ExportOptions(checkpoint=checkpoint, out=old, **KINDS[kind]))
    assert made == []
    assert open_engine(old).manifest.name == "old"
    assert entries(tmp_path) == ["engine", "tiny.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_b8_nothing_is_made_where_space_is_lacking(made, checkpoint, old, tmp_path, monkeypatch, kind: str):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda *_: usage)
    with pytest.raises(ExportError, match="too little space"):
        export(ExportOptions(checkpoint=checkpoint, out=old, force=True, **KINDS[kind]))
    assert made == []
    assert open_engine(old).manifest.name == "old"
    assert entries(tmp_path) == ["engine", "tiny.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_b9_killed_at_any_step(made, killed, checkpoint, old, tmp_path: Path, kind: str):
    options = ExportOptions(checkpoint=checkpoint, out=old, name="new", force=True, **KINDS[kind])
    step = 0

    def work(kill: Callable[[], None]) -> None:
        calls = 0

        def progress(*_: object) -> None:
            nonlocal calls
            if calls == step:
                kill()
            calls += 1

        export(options, progress)

    found = []
    while killed(work):
        found.append(open_engine(old).manifest.name)
        for leftover in tmp_path.glob(".engine*"):
            with pytest.raises(EngineNotFoundError):
                open_engine(leftover)
        step += 1
    assert found == ["old"] * (len(found) - 1) + ["new"]  # the last step is told when the engine is in its place
    assert len(found) > 15
    assert made == []  # all of it by children
    export(options)
    assert len(made) == FILES[kind]
    assert open_engine(old).manifest.name == "new"
    assert entries(tmp_path) == ["engine", "tiny.safetensors"]


@pytest.mark.parametrize(("kind", "backend"), [("onnx", "onnxruntime"), ("aoti", "aoti")])
def test_b12_what_computes_something_else_is_not_installed(
    made, checkpoint, old, tmp_path: Path, monkeypatch, capsys, kind: str, backend: str
):
    compared = {"graph": "decoder", "batch": 2, "max_abs": 1e-6, "relative": 1e-6, "tolerance": 2e-5}
    passed = parity.Comparison(**compared, backend="torch", status="passed")
    failed = parity.Comparison(**compared | {"relative": 0.5}, backend=backend, status="failed")
    monkeypatch.setattr(targets, "compare", lambda *_: (passed, failed))
    arguments = {"onnx": ["--onnx"], "aoti": ["--aoti", "cpu"]}[kind]
    assert cli.main(["--ckpt", str(checkpoint), "--out", str(old), "--force", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1 of 2 comparisons" in captured.err
    assert f"decoder on {backend} with batch 2" in captured.err
    report = tmp_path / "engine.parity.json"
    assert str(report) in captured.err
    assert [(row["backend"], row["status"]) for row in json.loads(report.read_text())] == [
        ("torch", "passed"),
        (backend, "failed"),
    ]
    assert len(made) == 5
    assert open_engine(old).manifest.name == "old"
    assert entries(tmp_path) == ["engine", "engine.parity.json", "tiny.safetensors"]


@pytest.mark.parametrize("command", ["--onnx", "--aoti", "--refit", "--verify"])
def test_b10_a_second_command_leaves_with_a_message(made, checkpoint, old, tmp_path: Path, capsys, command: str):
    before = open_engine(old).manifest
    arguments = {
        "--onnx": ["--ckpt", str(checkpoint), "--out", str(old), "--force", "--onnx"],
        "--aoti": ["--ckpt", str(checkpoint), "--out", str(old), "--force", "--aoti", "cpu"],
        "--refit": ["--ckpt", str(checkpoint), "--refit", str(old)],
        "--verify": ["--verify", str(old)],
    }
    with exclusive_lock(old.with_name(".engine.featinv-lock")):
        assert cli.main(arguments[command]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "another export is writing this engine" in captured.err
    assert made == []
    assert open_engine(old).manifest == before
    assert entries(tmp_path) == ["engine", "tiny.safetensors"]


def test_c8_an_export_opens_no_socket(checkpoint, tmp_path: Path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    out = tmp_path / "engine"
    assert cli.main(["--ckpt", str(checkpoint), "--out", str(out)]) == 0
    assert cli.main(["--verify", str(out)]) == 0
