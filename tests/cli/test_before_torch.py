"""What can be known before torch and an engine are loaded is said before, with the codes of README's table.

One process in which torch cannot be imported answers all command lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

PROGRAM = """
import contextlib, io, json, sys
sys.modules["torch"] = None  # whoever imports it fails
from featinv_export.cli import main as featinv_export
from featinv_fast.cli import main as featinv
answers = []
for program, *arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = {"featinv": featinv, "featinv-export": featinv_export}[program](arguments)
        except SystemExit as left:
            code = left.code or 0
        except ImportError as error:
            code, _ = "torch", print(error, file=err)
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


class Fault(NamedTuple):
    """A command line, the code it must end with, and what its message must say."""

    line: str
    code: int
    says: str


# A sound recipe, whose autoencoder is not there.
WHOLE = """
recipe = "base"
folder = "runs/base"
out = "base.safetensors"
autoencoder = "autoencoder.safetensors"
[data]
source = "scenes"
[model]
[training]
steps = 5
"""
INVERT = "featinv invert --engine {engine} --features {maps} --out {new}"
EVAL = "featinv eval --engine {engine} --images {images} --out {new}"
BENCH = "featinv bench {engine}"
EXPORT = "featinv-export --ckpt {checkpoint} --out {new}"
RUNNING = [
    Fault("--backend onnxruntme", 2, "did you mean onnxruntime?"),
    Fault("--device gpu", 2, "auto, cpu, cuda or cuda:N"),
    Fault("--precision fp8", 2, "fp32, fp16, bf16"),
    Fault("--threads 0", 2, "at least 1"),
    Fault("--threads 2 --backend tensorrt", 2, "leave out --threads"),
    Fault("--cuda-graphs always", 2, "auto, off, step, loop"),
    Fault("--compiled --backend onnxruntime", 2, "leave out --compiled"),
    Fault("--two-streams --backend aoti", 2, "leave out --two-streams"),
    Fault("--kernels triton --backend onnxruntime", 2, "leave out --kernels"),
    Fault("--compiled --two-streams", 2, "one stream"),
    Fault("--kernels cutlass", 2, "no provider of this name"),
    Fault("--kernels softmax=triton", 2, "no such operation"),
]
FAULTS = [
    Fault("featinv --version", 0, ""),
    Fault("featinv-export --version", 0, ""),
    Fault("featinv", 2, "COMMAND"),
    Fault("featinv nothing", 2, "invalid choice"),
    # Inputs that are not there.
    Fault("featinv invert --engine {gone} --features {maps} --out {new}", 2, "there is no engine here"),
    Fault("featinv invert --engine {engine} --features {gone} --out {new}", 2, "there is no such file"),
    Fault("featinv invert --engine {engine} --images {gone} --out {new}", 2, "there is no such file or folder"),
    Fault("featinv eval --engine {gone} --images {images} --out {new}", 2, "there is no engine here"),
    Fault("featinv eval --engine {engine} --images {gone} --out {new}", 2, "there is no such file or folder"),
    Fault(EVAL + " --checkpoint {gone}", 2, "there is no such checkpoint"),
    Fault(EVAL + " --inception {gone}", 2, "there is no such file"),
    Fault(EVAL + " --labels {gone}", 2, "there is no such file"),
    Fault(EVAL + " --judge test_resnet --judge-weights {gone}", 2, "there is no such file"),
    Fault("featinv table {images} {gone}", 2, "there is no such file or folder"),
    Fault("featinv table {images} --csv --measures ssim", 2, "the CSV has all figures"),
    Fault("featinv bench {gone}", 2, "there is no engine here"),
    Fault("featinv doctor --engine {gone}", 2, "there is no engine here"),
    Fault("featinv convert {gone} {new}", 2, "there is no such checkpoint"),
    Fault("featinv train --config {gone}", 2, "there is no such file"),
    Fault("featinv distill --config {gone}", 2, "there is no such file"),
    Fault("featinv train --config {recipe} --root {gone}", 2, "there is no such folder"),
    Fault("featinv-export --ckpt {gone} --out {new}", 2, "there is no such checkpoint"),
    Fault(EXPORT + " --lora {gone}", 2, "there is no such LoRA file"),
    Fault(EXPORT + " --lcm-unet {gone}", 2, "there is no such U-Net"),
    Fault(EXPORT + " --prompt x --tokenizer {gone}", 2, "there is no such tokenizer"),
    Fault("featinv-export --ckpt {checkpoint} --refit {gone}", 2, "there is no engine here"),
    Fault("featinv-export --verify {gone}", 2, "there is no engine here"),
    Fault("featinv-export --inspect {gone}", 2, "there is no engine here"),
    Fault("featinv-export --from-onnx {gone} --trt", 2, "there is no engine here"),
    # Outputs that are.
    Fault("featinv invert --engine {engine} --features {maps} --out {old}", 2, "no ledger tells of"),
    Fault("featinv eval --engine {engine} --images {images} --out {old}", 2, "holds an earlier evaluation"),
    Fault("featinv demo --out {picture}", 2, "pass --force"),
    Fault(BENCH + " --plot {picture}", 2, "pass --force"),
    Fault("featinv convert {checkpoint} {picture}.safetensors", 2, "pass --force"),
    Fault("featinv convert {checkpoint} {checkpoint} --force", 2, "an input, the checkpoint"),
    Fault("featinv-export --ckpt {checkpoint} --out {engine}", 2, "pass --force"),
    Fault("featinv-export --ckpt {checkpoint} --out {images} --force", 2, "it is not an engine"),
    Fault("featinv-export --ckpt {checkpoint} --out {checkpoint} --force", 2, "an input, checkpoint"),
    Fault(BENCH + " --out {engine}/rows.jsonl", 2, "an input, the engine"),
    # Places where nothing can be made.
    Fault("featinv invert --engine {engine} --features {maps} --out {maps}/out", 1, "not a folder"),
    Fault("featinv eval --engine {engine} --images {images} --out {maps}/out", 1, "not a folder"),
    Fault("featinv demo --out {maps}/demo.png", 1, "not a folder"),
    Fault(BENCH + " --out {maps}/rows.jsonl", 1, "not a folder"),
    Fault("featinv convert {checkpoint} {maps}/new.safetensors", 1, "not a folder"),
    Fault("featinv-export --ckpt {checkpoint} --out {maps}/engine", 1, "not a folder"),
    # Names that do not say how to read or write a file.
    Fault("featinv invert --engine {engine} --features {images}/one.png --out {new}", 2, ".npy, .npz, .safetensors"),
    Fault(EVAL + " --checkpoint {recipe}", 1, "rename the file by its format"),
    Fault("featinv convert {recipe} {new}.safetensors", 1, "rename the file by its format"),
    Fault("featinv convert {checkpoint} {new}", 2, "a name that ends in .safetensors"),
    Fault("featinv convert {checkpoint} {new}.safetensors --to diffusers", 2, "expected: a folder"),
    Fault("featinv-export --ckpt {recipe} --out {new}", 1, "rename the file by its format"),
    # Recipes.
    Fault("featinv train --config {images}/one.png", 1, "no TOML file"),
    Fault("featinv train --config {recipe}", 1, "missing"),
    Fault("featinv train --config {whole} --set recipe=bse", 2, "did you mean 'base'?"),
    Fault("featinv train --config {whole} --set training.stps=3", 2, "did you mean 'steps'"),
    Fault("featinv distill --config {whole}", 2, "run `featinv train"),
    Fault("featinv train --config {whole}", 2, "no such file or folder"),
    # Values.
    *(Fault(f"{line} {fault.line}", fault.code, fault.says) for line in (INVERT, EVAL) for fault in RUNNING),
    *(Fault(f"featinv demo --out {{new}}.png {fault.line}", *fault[1:]) for fault in RUNNING),
    *(Fault(f"{BENCH} {fault.line}", *fault[1:]) for fault in RUNNING if "--backend" not in fault.line),
    Fault(INVERT + " --steps 0", 2, "1 to 1000"),
    Fault(INVERT + " --sampler euler", 2, "ddim, lcm, dpm++2m"),
    Fault(INVERT + " --sampler lcm --steps 51", 2, "1 to 50"),
    Fault(INVERT + " --guidance-scale nan", 2, "finite"),
    Fault(INVERT + " --samples 0", 2, "at least 1"),
    Fault(INVERT + " --batch-size 0", 2, "at least 1"),
    Fault(INVERT + " --layout chw", 2, "invalid choice"),
    Fault(EVAL + " --settings euler:3", 2, "ddim, lcm, dpm++2m"),
    Fault(EVAL + " --settings a:b:c:d", 2, "sampler:steps:guidance"),
    Fault(EVAL + " --limit 0", 2, "at least 1"),
    Fault(EVAL + " --pictures -1", 2, "at least 0"),
    Fault(EVAL + " --batch-size 0", 2, "at least 1"),
    Fault(EVAL + " --samples 0", 2, "at least 1"),
    Fault(EVAL + " --judge test_resnet --judge-image-size 0", 2, "at least 1"),
    Fault(EVAL + " --judge-layer 2 --judge-weights random:0", 2, "no judge is named"),
    Fault("featinv demo --count 0 --out {new}.png", 2, "at least 1"),
    Fault("featinv demo --first -1 --out {new}.png", 2, "at least 0"),
    Fault("featinv demo --out {new}.txt", 2, "no name of a picture"),
    Fault(BENCH + " --backends torch,onnxruntme", 2, "did you mean onnxruntime?"),
    Fault(BENCH + " --backends torch,torch", 2, "named twice"),
    Fault(BENCH + " --batch-sizes 1,0", 2, "at least 1"),
    Fault(BENCH + " --batch-sizes 8,8", 2, "named twice"),
    Fault(BENCH + " --samplers euler:3", 2, "ddim, lcm, dpm++2m"),
    Fault(BENCH + " --rounds 1", 2, "at least 2"),
    Fault(BENCH + " --plot {new}.txt", 2, "no name of a picture"),
    Fault("featinv convert {checkpoint} {new} --to onnx", 2, "invalid choice"),
    Fault("featinv train --config {recipe} --set steps", 2, "KEY=VALUE"),
    Fault("featinv train --config {recipe} --set a.b=1 --set a.b=2", 2, "replaced twice"),
    Fault(EXPORT + " --sampler euler", 2, "ddim, lcm, dpm++2m"),
    Fault(EXPORT + " --steps 0", 2, "at least 1"),
    Fault(EXPORT + " --lora-scale 2", 2, "--lora FILE"),
    Fault(EXPORT + " --max-batch 0", 2, "1 <= optimal <= largest"),
    Fault("featinv invert --images {images} --out {new} --backbone-weights {new}.pth", 2, "no such file"),
    Fault("featinv eval --images {images} --out {new} --backbone-weights {new}.pth", 2, "no such file"),
    # Options without effect.
    Fault("featinv invert --engine {engine} --images {images} --out {new} --layout nhwc", 2, "leave out --layout"),
    Fault(INVERT + " --backbone convnext_base --backbone-weights w.pth", 2, "leave out --backbone, --backbone-weights"),
    Fault(INVERT + " --guidance-scale 1 --unconditional-strength 0.5", 2, "leave out --unconditional-strength"),
    Fault(INVERT + " --guess-mode --unconditional-strength 0.5", 2, "leave out --unconditional-strength"),
    Fault(INVERT + " --sampler lcm --eta 0.5", 2, "has no eta"),
    Fault(BENCH + " --backends onnxruntime --compiled", 2, "torch among the backends"),
    Fault(BENCH + " --backends tensorrt --threads 2", 2, "leave out --threads"),
    Fault(EXPORT + " --no-build --opt-level 5", 2, "--trt or --trt-rtx as well"),
    Fault(EXPORT + " --trt --no-build --timing-cache t", 2, "leave out --timing-cache"),
    Fault("featinv-export --verify {engine} --onnx", 2, "--onnx"),
    Fault("featinv-export --inspect {engine} --force", 2, "--force"),
]


@pytest.fixture(scope="module")
def answers(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, str, str]]:
    """What each command line printed and how it ended."""
    folder = tmp_path_factory.mktemp("before_torch")
    named = {
        name: folder / name for name in ("maps.npy", "images", "recipe.toml", "checkpoint.safetensors", "new", "gone")
    }
    np.save(named["maps.npy"], np.zeros((2, 6, 5, 5), np.float32))
    named["images"].mkdir()
    Image.new("RGB", (8, 8)).save(named["images"] / "one.png")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    (folder / "picture.png.safetensors").touch()
    (folder / "old").mkdir()
    for record in ("inversion.json", "report.json"):
        (folder / "old" / record).touch()
    named["recipe.toml"].write_text('recipe = "base"\n')
    (folder / "whole.toml").write_text(WHOLE)
    named["checkpoint.safetensors"].write_bytes(b"\0" * 64)
    paths = {name.partition(".")[0]: path for name, path in named.items()}
    paths |= {
        "engine": tiny_engine,
        "whole": folder / "whole.toml",
        "picture": folder / "picture.png",
        "old": folder / "old",
    }
    lines = [[word.format(**paths) for word in fault.line.split()] for fault in FAULTS]
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert sorted(folder.rglob("*")) == before, "a refused command left something behind"
    return {fault.line: tuple(answer) for fault, answer in zip(FAULTS, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.line.replace("{", "").replace("}", "") for fault in FAULTS])
def test_what_can_be_known_before_torch_is_said_before(answers, fault: Fault):
    code, out, err = answers[fault.line]
    assert code == fault.code, err
    assert fault.says in err
    assert bool(out) == (code == 0)
    assert "Traceback" not in err
    assert "Errno" not in err


def test_sound_command_lines_come_as_far_as_torch(tiny_engine: Path, tmp_path: Path):
    np.save(tmp_path / "maps.npy", np.zeros((2, 6, 5, 5), np.float32))
    line = [
        "featinv",
        "invert",
        "--engine",
        tiny_engine,
        "--features",
        tmp_path / "maps.npy",
        "--out",
        tmp_path / "new",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([[str(word) for word in line]]),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout)[0][0] == "torch"
