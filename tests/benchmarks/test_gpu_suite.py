"""The suite for GPUs runs on a CPU at a small size: its parts, rows and table, and what happens when one fails."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the suite is for Linux, where its parts are forked")


@pytest.fixture(scope="module")
def suite():
    """The script as a module, with its siblings importable as when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu_suite", BENCHMARKS / "gpu_suite.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_dry_run_measures_everything(tmp_path):
    results, markdown = tmp_path / "rows.jsonl", tmp_path / "tables.md"
    results.write_text('{"of": "an earlier run"}\n')
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py"), "--dry", "--results", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--markdown", str(markdown)], capture_output=True, text=True, check=False, env=environment
    )
    earlier, *lines = results.read_text().splitlines()
    assert json.loads(earlier) == {"of": "an earlier run"}  # rows are appended
    rows = [json.loads(line) for line in lines]
    assert [row for row in rows if row["status"] not in ("ok", "not served")] == []
    assert done.returncode == 0, done.stderr
    found = {row["what"] for row in rows}
    assert found == {
        *("matrix product", "copy", "random weights", "op correctness", "op time", "rewrites in float64"),
        *("graph accuracy", "graph time", "images", "end to end", "decoder", "LCM and TAESD's shape", "loop"),
        "launch path",
    }
    for row in rows:
        assert row["dry"] is True
        for key in ("benchmark", "part", "date", "device", "versions", "threads", "platform"):
            assert row[key], key
        if "seconds" in row:
            assert 0.0 < row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        if "gate" in row:
            assert row["gate"]["relative"] <= row["gate"]["tolerance"]
    served = {(row["op"], row["provider"]) for row in rows if row["what"] == "op time"}
    from featinv_kernels import OPS

    assert {(name, "reference") for name in OPS} <= served
    paths = {(row["contender"], row["status"]) for row in rows if row["what"] == "launch path"}
    assert {("plain layers", "ok"), ("fused operations", "ok"), ("a graph for a step", "not served")} <= paths
    assert {("compiled", "ok"), ("two streams", "not served")} <= paths
    contenders = {row["contender"] for row in rows if row["what"] == "loop"}
    assert contenders == {"ours", "straightforward torch loop", "diffusers eager", "diffusers compiled"}
    # Two loops do not round alike: zero would mean that one thing was compared with itself.
    assert all(row["gate"]["relative"] > 0.0 for row in rows if row["what"] in ("loop", "images"))
    text = markdown.read_text()
    assert text.strip() == done.stdout.strip()
    assert "Its times mean nothing" in text
    assert "| guided step, batch 1 " in text
    assert "What failed" not in text


def run_suite(suite, tmp_path, monkeypatch, parts):
    """Run only these parts, and return the exit code and the rows."""
    results = tmp_path / "rows.jsonl"
    monkeypatch.setattr(suite, "PARTS", parts)
    monkeypatch.setattr(suite, "GRACE", 0.2)
    monkeypatch.setattr(suite, "DRY_PATIENCE", 1.0)
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--dry", "--results", str(results)])
    code = suite.main()
    return code, [json.loads(line) for line in results.read_text().splitlines()]


def test_the_suite_goes_on_after_crashes_hangs_and_wrong_results(suite, tmp_path, monkeypatch, capsys):
    def fine(context):
        context.emit("copy", bytes_per_second=1.0, tb_per_second=1.0)

    def raises(context):
        raise ValueError("nothing of this works")

    def crashes(context):
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(context):
        time.sleep(600)

    def wrong(context):
        with context.measured("op correctness", op="x", provider="y", case="z") as row:
            row["gate"] = {"relative": 1.0, "tolerance": 0.0}
            raise suite.ops.RedGateError("it is off by 1")

    def late(context):
        assert context.rates == {"copy": 1.0}  # what another part measured
        with context.failures_noted("end to end", batch=1):
            context.interleave({"slow": lambda: time.sleep(0.2)}, calls=500)

    parts = (
        ("rates", 30, fine),
        ("raises", 30, raises),
        ("crashes", 30, crashes),
        ("hangs", 3.0, hangs),
        ("wrong", 30, wrong),
        ("late", 30, late),
    )
    code, rows = run_suite(suite, tmp_path, monkeypatch, parts)
    assert code == 3
    found = [(row["part"], row["status"], row.get("error")) for row in rows]
    assert found == [
        ("rates", "ok", None),
        ("raises", "error", "ValueError: nothing of this works"),
        ("crashes", "error", "it was ended by SIGKILL"),
        ("hangs", "error", "it was still running after 3 s and was killed"),
        ("wrong", "red", "it is off by 1"),
        ("late", "skipped", found[-1][2]),
    ]
    assert found[-1][2].startswith("a round takes 1")
    assert all(row["device"] and row["versions"] for row in rows)
    printed = capsys.readouterr().out
    assert "nothing of this works" in printed
    assert "SIGKILL" in printed


def test_parts_beyond_the_time_are_left_out(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "SECONDS", 1.0)
    code, rows = run_suite(suite, tmp_path, monkeypatch, (("rates", 30, lambda context: context.emit("copy")),))
    assert code == 1
    assert [(row["part"], row["status"]) for row in rows] == [("rates", "skipped")]


def test_a_wrong_op_is_red_and_not_timed(suite, tmp_path):
    import dataclasses

    import torch
    from gpu_parts import ops
    from gpu_parts.context import Context

    from featinv_kernels import OPS

    true = OPS["geglu"]

    def wrong(*tensors, provider, **options):
        output = true.function(*tensors, provider=provider, **options)
        return output * 1.01 if provider == "reference" else output

    results = tmp_path / "rows.jsonl"
    context = Context(
        part="op geglu",
        device=torch.device("cpu"),
        dry=True,
        sizes=suite.DRY,
        work=tmp_path,
        results=results,
        deadline=time.monotonic() + 600,
        rates={},
    )
    OPS["geglu"] = dataclasses.replace(true, function=wrong)
    try:
        ops.run(context, "geglu")
    finally:
        OPS["geglu"] = true
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    statuses = {(row["what"], row["provider"], row["status"]) for row in rows}
    assert ("op correctness", "reference", "red") in statuses
    assert ("op correctness", "torch", "ok") in statuses
    assert {row["provider"] for row in rows if row["what"] == "op time"} == {"torch"}


def test_targets_stand_beside_what_was_reached(suite):
    from gpu_parts.report import targets

    common = {"status": "ok", "dry": False}
    run = {**common, "what": "end to end", "sampler": "ddim", "steps": 50, "tflops": 123.0}
    rows = [
        {**run, "batch": 32, "images_per_second": 4.5, "seconds": {"median": 7.0}},
        {**run, "batch": 1, "images_per_second": 9.0, "seconds": {"median": 0.1}},
        {**common, "what": "loop", "contender": "ours", "batch": 1, "seconds_per_step": 0.0031},
    ]
    reached = {line[0]: line[2] for line in targets(rows)}
    assert reached["guided step, batch 1"] == "3.10 ms"
    assert reached["whole DDIM-50 image, batch >= 32"] == "123 TFLOP/s"
    assert reached["DDIM-50, batch >= 32"] == "4.5 images/s"
    assert reached["LCM-4, batch >= 32"] == "-"
    # A dry run reaches nothing.
    assert {line[2] for line in targets([{**row, "dry": True} for row in rows])[1:]} == {"-"}


def test_without_a_gpu_nothing_is_claimed(tmp_path):
    results = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py"), "--results", str(results)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "--dry" in done.stderr
    assert not results.exists()
