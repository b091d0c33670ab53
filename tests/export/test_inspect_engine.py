"""`featinv-export --inspect`: what an engine holds, for people and for machines."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from featinv_export import cli
from featinv_fast.engine import open_engine


@pytest.fixture
def inspected(capsys):
    """`inspected(engine, *more)`: what the command prints."""

    def run(*arguments: object) -> str:
        assert cli.main(["--inspect", *map(str, arguments)]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


def test_as_json(inspected, tiny_engine):
    manifest = open_engine(tiny_engine).manifest
    report = json.loads(inspected(tiny_engine, "--json"))
    assert report["path"] == str(tiny_engine)
    assert (report["name"], report["precision"], report["image_size"]) == ("tiny", "fp32", 16)
    assert report["sampling"]["steps"] == 3
    assert report["source"]["sha256"] == manifest.source.sha256
    assert len(report["parity"]) == len(manifest.parity) == 20
    decoder = report["graphs"]["decoder"]
    assert decoder["inputs"] == [{"name": "latents", "shape": ["batch", 4, 8, 8], "dtype": "float32"}]
    assert decoder["output"] == {"name": "image", "shape": ["batch", 3, 16, 16], "dtype": "float32"}
    assert decoder["dims"] == {"batch": [1, 1, 64]}
    assert report["backends"]["torch"] == {"weights.safetensors": manifest.files["weights.safetensors"].size}
    assert set(report["backends"]["onnxruntime"]) == {f"{name}.onnx" for name in report["graphs"]}
    assert report["backends"]["aoti"] == report["backends"]["tensorrt"] == {}


def test_as_text(inspected, tiny_engine):
    lines = inspected(tiny_engine).splitlines()
    manifest = open_engine(tiny_engine).manifest
    assert lines[0] == f"engine {tiny_engine}"
    assert "  features [B, 6, 5, 5]" in lines
    assert "  sampler ddim, 3 steps, guidance scale 1.75" in lines
    assert "  decoder: latents [batch, 4, 8, 8] -> image [batch, 3, 16, 16]" in lines
    assert "    batch 1 to 64, best at 1" in lines
    assert ["torch", "weights.safetensors"] in [line.split()[:2] for line in lines]
    assert "  aoti         none" in lines
    assert "  graphs are read by the ONNX parser of TensorRT 10.0 and newer" in lines
    (info,) = (i for i in manifest.parity if (i.graph, i.backend, i.batch) == ("decoder", "onnxruntime", 2))
    parity = ["decoder", "onnxruntime", "batch", "2", f"{info.relative:.1e}", "of", "2e-05"]
    assert parity in [line.split() for line in lines]
    assert f"  sha256 of the checkpoint {manifest.source.sha256}" in lines
    assert "  exact: constant prompts" in lines
    assert f"  torch {manifest.tools['torch']}" in lines


def test_what_an_engine_may_have_besides(inspected, aoti_engine, restage, tmp_path):
    opened = open_engine(aoti_engine).manifest
    other = restage(
        aoti_engine,
        tmp_path / "other.engine",
        adaptations=("an LCM-LoRA",),
        prompts=dataclasses.replace(opened.prompts, cond="a cat"),
    )
    lines = inspected(other).splitlines()
    assert "  adapted: an LCM-LoRA" in lines
    assert any("prompt 'a cat'" in line for line in lines)
    assert f"  packages are for x86-64-v3, linux x86_64, torch {opened.aoti.torch}" in lines
    assert ["aoti", "decoder.pt2"] in [line.split()[:2] for line in lines]
    assert "  features [B, 6, 5, 5]" in lines


def test_c1_a_damaged_engine_is_a_failure(tiny_engine, restage, tmp_path, capsys):
    engine = restage(tiny_engine, tmp_path / "damaged.engine")
    (engine / "decoder.onnx").unlink()
    assert cli.main(["--inspect", str(engine)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "decoder.onnx is missing" in captured.err


def test_inspecting_needs_no_torch(tiny_engine):
    code = (
        "import sys\nfrom featinv_export.cli import main\n"
        f"sys.exit(main(['--inspect', {str(tiny_engine)!r}]) or 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "engine " in result.stdout
