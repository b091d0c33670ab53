"""The benchmark scripts run, their rows stand alone, and a wrong result stops them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BACKENDS = {"torch", "onnxruntime"}


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# One test, so that workers that share the tests among them export once.
def test_full_size_writes_its_rows_and_a_red_gate_reports_no_time(tmp_path):
    results = tmp_path / "results" / "full_size.jsonl"
    options = ("--rounds", 3, "--steps", 2, "--threads", 1, "--work", tmp_path, "--results", results)
    done = run("full_size.py", "--small", *options)
    assert done.returncode == 0, done.stderr
    assert "speed-up" in done.stdout
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["what"], row.get("backend")) for row in rows] == [
        ("featinv-export --onnx", None),
        ("invert one map", "torch"),
        ("invert one map", "onnxruntime"),
        ("guided step", None),
        ("decoder", None),
    ]
    for row in rows:
        check_stands_alone(row)
        # Python and torch alone take about 0.4 GiB; the small model adds next to nothing.
        assert 0.05 < row["peak_anonymous_gib"] < row["peak_resident_gib"] < 4.0
    check_comparison(rows[3], first="straightforward torch loop")
    check_comparison(rows[4], first="plain torch")

    pair = ("--ckpt", tmp_path / "random.safetensors", "--engine", tmp_path / "random.engine")
    red = run("step_speed.py", *pair, "--rounds", 2, "--threads", 1, "--tolerance", 0)
    assert red.returncode == 1
    assert "the gate is red" in red.stderr
    assert red.stdout == ""


def test_full_size_in_fp16_runs_every_graph_with_onnxruntime(tmp_path):
    results = tmp_path / "full_size.jsonl"
    options = ("--precision", "fp16", "--steps", 2, "--threads", 1, "--work", tmp_path, "--results", results)
    done = run("full_size.py", "--small", *options)
    assert done.returncode == 0, done.stderr
    exported, inverted = (json.loads(line) for line in results.read_text().splitlines())
    assert (exported["what"], inverted["what"]) == ("featinv-export --onnx", "invert one map")
    assert (inverted["backend"], inverted["steps"]) == ("onnxruntime", 2)
    for row in (exported, inverted):
        check_stands_alone(row)
        assert row["dtype"] == "fp16"
        assert 0.05 < row["peak_anonymous_gib"] < row["peak_resident_gib"] < 4.0
    onnxruntime = exported["compared"]["onnxruntime"]
    assert onnxruntime["graphs"] == [
        *("condition_encoder", "decoder", "denoiser", "denoiser_unguided", "time_embedding"),
    ]
    assert 1e-5 < onnxruntime["relative"] <= 1e-2
    assert "not_run" not in onnxruntime
    # Half of the fp32 checkpoint, and the graphs.
    assert exported["engine_gib"] < 0.75 * exported["checkpoint_gib"]


def check_stands_alone(row):
    for key in ("benchmark", "command", "dtype", "date", "device", "logical_cores", "memory_gib", "platform"):
        assert row[key], key
    assert row["threads"] == 1
    assert row["parameters"] > 1_000_000
    assert {"python", "torch", "onnxruntime", "featinv-fast"} <= set(row["versions"])
    assert {"revision", "modified"} <= set(row)  # None outside of a git checkout


def check_comparison(row, first):
    assert row["rounds"] == 3
    assert set(row["seconds"]) == BACKENDS | {first}
    assert set(row["speed_up"]) == BACKENDS
    for summary in (*row["seconds"].values(), *row["speed_up"].values()):
        assert 0.0 < summary["p20"] <= summary["median"] <= summary["p80"]
    errors = row["gate"]["relative"]
    assert set(errors) == BACKENDS
    assert all(error <= row["gate"]["tolerance"] == 1e-4 for error in errors.values())
    # Two ways to compute the same do not round alike: zero would mean that one thing was compared with itself.
    assert errors["onnxruntime"] > 0.0


def test_the_straightforward_loop_is_the_official_computation(golden, golden_model, relative_norm):
    spec = importlib.util.spec_from_file_location("baseline", BENCHMARKS / "baseline.py")
    baseline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(baseline)
    features, latents = golden.inputs["in.features"], golden.inputs["in.latent"]
    given = baseline.sample(golden_model, golden.prompts, features, latents, steps=10, guidance_scale=1.75)
    assert relative_norm(given, golden.expected["ddim.S10.g1.75.s1.0"]) < 2e-5
