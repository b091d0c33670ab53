"""`featinv-export`: arguments, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from featinv_export import cli, exporter
from featinv_export.onnx_graphs import export_graph
from featinv_export.options import ExportOptions
from featinv_export.weights import weight_index
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.errors import ParityError
from featinv_fast.rewrites.engine_model import EngineModel


def test_done(checkpoint_file, tmp_path: Path, capsys):
    out = tmp_path / "engine"
    assert cli.main(["--ckpt", str(checkpoint_file()), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert captured.err == ""
    open_engine(out)


def test_done_with_json(checkpoint_file, tmp_path: Path, capsys):
    out = tmp_path / "engine"
    assert cli.main(["--ckpt", str(checkpoint_file()), "--out", str(out), "--precision", "bf16", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["engine"], summary["precision"], summary["name"]) == (str(out), "bf16", "tiny")
    assert summary["files"]["weights.safetensors"] == (out / "weights.safetensors").stat().st_size
    assert {row["graph"] for row in summary["parity"]} == set(open_engine(out).graph_specs())


def test_every_option_reaches_the_export(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("c.ckpt", "t", "l", "u"):
        Path(name).touch()
    given: list[ExportOptions] = []
    monkeypatch.setattr(exporter, "export", lambda options, *_: given.append(options) or Path("engine"))
    arguments = (
        "--ckpt c.ckpt --out o --force --name n --onnx --precision fp16 --storage fp16 --max-batch 8 --optimal-batch 2 "
        "--prompt p --negative-prompt q --tokenizer t --backbone b --layer 1 --feature-size 9x12 --lora l "
        "--lora-scale 0.5 --lora-alpha rank --lcm-unet u --sampler lcm --steps 4 --guidance-scale 1.5"
    )
    assert cli.main(arguments.split()) == 0
    assert given == [
        ExportOptions(
            checkpoint=Path("c.ckpt"),
            out=Path("o"),
            force=True,
            name="n",
            onnx=True,
            precision=Precision.FP16,
            storage=Precision.FP16,
            max_batch=8,
            optimal_batch=2,
            prompt="p",
            negative_prompt="q",
            tokenizer=Path("t"),
            backbone="b",
            layer="1",
            feature_size=(9, 12),
            lora=Path("l"),
            lora_scale=0.5,
            lora_alpha="rank",
            lcm_unet=Path("u"),
            sampler="lcm",
            steps=4,
            guidance_scale=1.5,
        )
    ]
    assert capsys.readouterr().out == "engine\n"
    assert cli.main(["--ckpt", "c.ckpt"]) == 0
    assert given[1] == ExportOptions(checkpoint=Path("c.ckpt"))


def test_failed(tmp_path: Path, capsys):
    assert cli.main(["--ckpt", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "engine")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("featinv-export: there is no such checkpoint\n  given: ")
    assert "Traceback" not in captured.err


def test_an_engine_in_place_of_a_checkpoint(checkpoint_file, tmp_path: Path, capsys):
    assert cli.main(["--ckpt", str(checkpoint_file()), "--out", str(tmp_path / "engine")]) == 0
    assert cli.main(["--ckpt", str(tmp_path / "engine"), "--out", str(tmp_path / "second")]) == 1
    error = capsys.readouterr().err
    assert "this folder is an engine and not a checkpoint" in error
    assert "--refit, --verify and --from-onnx" in error


def test_an_engine_does_not_replace_what_it_is_made_of(checkpoint_file, tmp_path: Path, capsys):
    path = Path(checkpoint_file())
    for out in (path, path.parent):
        assert cli.main(["--ckpt", str(path), "--out", str(out), "--force"]) == 2
        assert "an input, checkpoint" in capsys.readouterr().err
    assert path.exists()


def test_b8_existing_engine(checkpoint_file, tmp_path: Path, capsys):
    arguments = ["--ckpt", str(checkpoint_file()), "--out", str(tmp_path / "engine")]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main([*arguments, "--force"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--ckpt"],
        ["--ckpt", "x", "--precision", "fp8"],
        ["--ckpt", "x", "--feature-size", "9"],
        ["--ckpt", "x", "--max-batch", "many"],
        ["--ckpt", "x", "--unknown"],
        ["--ckpt", "x", "--prec", "fp16"],
        ["--ckpt", "x", "surplus"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: featinv-export" in capsys.readouterr().err


def test_usage_is_a_line_for_each_thing_to_do(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    usage, _, error = capsys.readouterr().err.partition("featinv-export: error: ")
    assert usage.startswith("usage: featinv-export --ckpt PATH ")
    assert len(usage.splitlines()) == 4
    assert all(name in usage for name in ("--ckpt", "--refit", "--from-onnx", "--verify", "--inspect"))
    assert error == "name one thing to work on: --ckpt PATH, --from-onnx DIR, --verify DIR or --inspect DIR\n"


def test_a_refit_without_a_checkpoint_says_what_it_needs(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--refit", str(tmp_path)])
    assert caught.value.code == 2
    assert "error: --refit needs the checkpoint whose weights it takes: --ckpt PATH" in capsys.readouterr().err


@pytest.mark.parametrize("more", ["--max-batch 0", "--lora-scale 2", "--lora-alpha 2", "--feature-size 0x3"])
def test_values_out_of_range_are_wrong_usage(more: str, capsys):
    assert cli.main(["--ckpt", "x.safetensors", *more.split()]) == 2
    assert "expected: " in capsys.readouterr().err


def test_an_unknown_backbone_is_wrong_usage(checkpoint_file, tmp_path: Path, capsys):
    arguments = ["--ckpt", str(checkpoint_file()), "--out", str(tmp_path / "engine"), "--backbone", "convnext_bose"]
    assert cli.main(arguments) == 2
    assert "convnext_base" in capsys.readouterr().err


def test_b12_a_failed_comparison_installs_nothing_and_keeps_its_report(checkpoint_file, tmp_path, monkeypatch, capsys):
    """A weight goes wrong on its way into the engine."""
    write = exporter.write_weights

    def write_wrong(tensors: dict[str, torch.Tensor], *arguments: object) -> None:
        name = "denoiser.unet.norm_out.bias"
        write({**tensors, name: tensors[name] + 0.1}, *arguments)

    monkeypatch.setattr(exporter, "write_weights", write_wrong)
    out = tmp_path / "engine"
    assert cli.main(["--ckpt", str(checkpoint_file()), "--out", str(out)]) == 1
    report = tmp_path / "engine.parity.json"
    error = capsys.readouterr().err
    assert "4 of 10 comparisons" in error
    assert str(report) in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [report.name, "tiny.safetensors"]
    failed = {(row["graph"], row["batch"]) for row in json.loads(report.read_text()) if row["status"] == "failed"}
    assert failed == {(graph, batch) for graph in ("denoiser", "denoiser_unguided") for batch in (1, 2)}


def test_b12_the_old_engine_survives_a_failed_comparison(checkpoint_file, tmp_path: Path, monkeypatch):
    arguments = ["--ckpt", str(checkpoint_file()), "--out", str(tmp_path / "engine"), "--force"]
    assert cli.main([*arguments, "--name", "old"]) == 0

    def fail(*_: object) -> None:
        raise ParityError("planted")

    monkeypatch.setattr(exporter.parity, "require_passed", fail)
    assert cli.main(arguments) == 1
    assert open_engine(tmp_path / "engine").manifest.name == "old"


def test_interrupted(checkpoint_file, tmp_path: Path, monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "write_weights", interrupt)
    assert cli.main(["--ckpt", str(checkpoint_file()), "--out", str(tmp_path / "engine")]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "featinv-export: interrupted, no engine was installed"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_without_a_package(checkpoint_file, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.main(["--ckpt", str(checkpoint_file()), "--out", str(tmp_path / "engine"), "--onnx"]) == 1
    assert "pip install 'featinv-fast[export]'" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom featinv_export.cli import main\ntry:\n    main(['--help'])\n"
        "except SystemExit as done:\n    sys.exit(done.code or 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--ckpt PATH" in result.stdout


def test_tracing_is_silent(golden_engine: Path, capfd):
    """The tracer and its libraries print, log and warn; none of it may reach the terminal."""
    engine = open_engine(golden_engine)
    graph = EngineModel.empty(engine.manifest.model).graphs()["decoder"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_graph(graph, engine.graph_specs()["decoder"], weight_index(golden_engine))
    assert capfd.readouterr() == ("", "")
