"""Nothing is installed that nothing checked, unless that is asked for by name; then the engine says so."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from featinv_export import cli, parity
from featinv_export.checks import require_checkable
from featinv_export.exporter import export
from featinv_export.inspect_engine import as_data, as_text
from featinv_export.options import ExportOptions
from featinv_export.parity import CPU
from featinv_export.refit import refit
from featinv_export.targets.aoti_ import AotiTarget
from featinv_export.verify import verify
from featinv_fast.commands.doctor import describe, doctor
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.errors import ArgumentError, ExportError

REFUSAL = r"cannot be checked here\n  given: ONNX graphs: onnxruntime cannot be imported(.|\n)*--unchecked"


@pytest.fixture
def alone(monkeypatch):
    """No onnxruntime."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def test_without_onnxruntime_graphs_are_refused_before_any_work(alone, tmp_path, capsys):
    """The checkpoint is not even looked into."""
    checkpoint, out = tmp_path / "none.safetensors", tmp_path / "x.engine"
    checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(ExportError, match=REFUSAL):
        export(ExportOptions(checkpoint=checkpoint, out=out, onnx=True))
    assert cli.main(["--ckpt", str(checkpoint), "--out", str(out), "--onnx"]) == 1
    assert re.search(REFUSAL, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_an_engine_with_graphs_is_not_refitted_or_verified_without_onnxruntime(alone, tiny_engine, tmp_path):
    before = {path.name: path.read_bytes() for path in tiny_engine.iterdir()}
    with pytest.raises(ExportError, match=REFUSAL):
        refit(tiny_engine, ExportOptions(checkpoint=tmp_path / "none.safetensors"))
    with pytest.raises(ExportError, match=REFUSAL):
        verify(tiny_engine)
    assert {path.name: path.read_bytes() for path in tiny_engine.iterdir()} == before


def test_graphs_and_packages_in_a_precision_that_cannot_run_here_are_refused(monkeypatch, tmp_path):
    options = ExportOptions(checkpoint=tmp_path / "none", onnx=True, precision=Precision.BF16)
    with pytest.raises(ExportError, match="onnxruntime has no bf16 kernels for the CPU"):
        export(options)
    monkeypatch.setattr(parity, "has_kernels", lambda _: False)
    assert AotiTarget(CPU).problems(Precision.FP16) == ["this CPU has no fp16 convolutions"]
    with pytest.raises(ExportError, match="AOTInductor packages: this CPU"):
        require_checkable({"AOTInductor packages": ["this CPU"]}, unchecked=False)


def test_what_is_left_unchecked_by_name_is_said_everywhere(tiny_bf16_engine):
    engine = open_engine(tiny_bf16_engine)
    names = {f"{graph}.onnx" for graph in engine.graph_specs()}
    assert set(engine.manifest.unchecked()) == names
    assert set(as_data(engine)["unchecked"]) == names
    card, report = (tiny_bf16_engine / "README.md").read_text(), doctor(engine)
    assert "**Not checked**: `condition_encoder.onnx`" in card
    for text in (as_text(engine), describe(report)):
        assert len(re.findall(r"compared with the plain model by nobody: \w+\.onnx", text)) == len(names)


def test_of_an_engine_that_was_checked_nothing_is_said(tiny_engine):
    assert open_engine(tiny_engine).manifest.unchecked() == ()
    assert "Not checked" not in (tiny_engine / "README.md").read_text()


def test_unchecked_is_refused_where_it_has_no_effect(tmp_path):
    with pytest.raises(ArgumentError, match="unchecked has no effect"):
        export(ExportOptions(checkpoint=tmp_path / "none", unchecked=True))


def test_the_extra_for_exports_brings_what_checks_them():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {re.match(r"[\w-]+", item)[0] for item in extras["export"]} == {"onnx", "onnxscript", "onnxruntime"}
