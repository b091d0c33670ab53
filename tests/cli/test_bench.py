"""`featinv bench`: rows that stand alone, a gate before any time, and what cannot run is said."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from featinv_fast.commands import bench as command
from featinv_fast.commands.bench import Bench
from featinv_fast.commands.bench_options import BenchOptions
from featinv_fast.engine import open_engine

FAST = ("--rounds", 2, "--threads", 1, "--quiet", "--device", "cpu")


def test_rows_of_two_backends(featinv, tiny_engine, tmp_path):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "rows" / "bench.jsonl", tmp_path / "bench.png"
    arguments = ("--backends", "torch,onnxruntime", "--batch-sizes", "1,3", "--samplers", "ddim:2:1.75,lcm:1:1")
    answer = featinv("bench", tiny_engine, *arguments, *FAST, "--out", out, "--plot", plot, "--json")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    rows = answer.json["rows"]
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    key = ("backend", "sampler", "steps", "guidance_scale", "batch")
    assert [tuple(row[name] for name in key) for row in rows] == [
        (backend, sampler, steps, guidance, batch)
        for sampler, steps, guidance in (("ddim", 2, 1.75), ("lcm", 1, 1.0))
        for batch in (1, 3)
        for backend in ("torch", "onnxruntime")
    ]
    for row in rows:
        seconds = row["seconds"]
        assert 0.0 < seconds["p20"] <= seconds["median"] <= seconds["p80"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / seconds["median"], rel=1e-3)
        assert row["gate"]["relative"] <= row["gate"]["tolerance"] == 1e-4
        assert row["first_seconds"] > 0.0
        assert row["peak_memory"]["process_resident_gib"] > 0.05
        assert (row["precision"], row["rounds"], row["warm_up"], row["threads"]) == ("fp32", 2, 1, 1)
        assert row["feature_shape"] == [6, 5, 5]
        assert row["benchmark"] == "bench"
        assert row["date"]
        assert row["device"]
        assert {"python", "torch", "onnxruntime"} <= set(row["versions"])
        assert {"revision", "modified"} <= set(row)  # None where the code is not in git
        # Two libraries do not round alike: zero would mean that one thing was compared with itself.
        assert row["gate"]["relative"] > 0.0 or row["backend"] == "torch"
        assert ("speed_up" in row) == (row["backend"] == "onnxruntime")
        if "speed_up" in row:
            assert row["speed_up"]["over"] == "torch"
    with Image.open(plot) as picture:
        assert picture.size[0] > 500

    # Rows are appended; a picture is not replaced unasked.
    again = ("bench", tiny_engine, "--backends", "torch", "--batch-sizes", "1", *FAST, "--out", out)
    assert featinv(*again).code == 0
    assert len(out.read_text().splitlines()) == len(rows) + 1
    refused = featinv(*again, "--plot", plot)
    assert (refused.code, refused.out) == (2, "")
    assert "--force" in refused.err


def test_the_table_and_the_engines_own_sampler(featinv, tiny_engine):
    answer = featinv("bench", tiny_engine, "--backends", "torch", "--batch-sizes", "2", *FAST)
    assert answer.code == 0
    head, _, line = answer.out.splitlines()
    assert "images/s" in head
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1:4] == ["torch fp32", "ddim:4", "2"]  # three do not divide 1000
    assert float(cells[4]) > 0.0


def test_c6_a_backend_that_cannot_run_is_listed_with_its_reasons(featinv, tiny_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    arguments = ("bench", tiny_engine, "--batch-sizes", "1", *FAST, "--json")
    answer = featinv(*arguments)
    assert answer.code == 0  # all that can run did
    assert {row["backend"] for row in answer.json["rows"]} == {"torch"}
    assert "onnxruntime cannot be imported" in answer.json["refused"]["onnxruntime"][0]
    assert "featinv: onnxruntime cannot run: " in answer.err
    asked = featinv(*arguments, "--backends", "onnxruntime,torch")
    assert asked.code == 3  # one that was asked for did not
    assert {row["backend"] for row in asked.json["rows"]} == {"torch"}
    alone = featinv(*arguments, "--backends", "onnxruntime")
    assert (alone.code, alone.out) == (1, "")
    assert "onnxruntime cannot be imported" in alone.err


def test_a_red_gate_reports_no_time(featinv, tiny_engine, monkeypatch):
    monkeypatch.setattr(command, "TOLERANCES", dict.fromkeys(command.TOLERANCES, 0.0))
    answer = featinv("bench", tiny_engine, "--backends", "onnxruntime", "--batch-sizes", "1", *FAST, "--json")
    assert answer.code == 1
    (row,) = answer.json["rows"]
    assert row["gate"]["relative"] > 0.0
    assert "the gate is red" in row["error"]
    assert not {"seconds", "speed_up", "images_per_second"} & set(row)
    assert "the gate is red" in answer.err


def test_a_wrong_backend_is_caught_and_the_right_one_is_timed(tiny_engine, monkeypatch):
    options = BenchOptions(backends=("torch", "onnxruntime"), batch_sizes=(2,), rounds=2, threads=1, progress=False)
    bench = Bench(options, open_engine(tiny_engine))
    session = bench.runtimes["torch"]._executor.session
    run = session.run
    monkeypatch.setattr(session, "run", lambda graph, *inputs: run(graph, *inputs) * 1.01)
    wrong, right = bench.rows()
    assert "the gate is red" in wrong["error"]
    assert "seconds" not in wrong
    assert right["seconds"]["median"] > 0.0
    assert "speed_up" not in right  # there is nothing right to compare with


def test_a_backend_that_fails_does_not_end_the_benchmark(tiny_engine, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    options = BenchOptions(
        backends=("torch", "onnxruntime"),
        batch_sizes=(1,),
        rounds=2,
        threads=1,
        out=out,
        progress=False,
    )
    bench = Bench(options, open_engine(tiny_engine))
    calls = []
    session = bench.runtimes["onnxruntime"]._executor.session
    run = session.run

    def broken(graph, *inputs):
        calls.append(graph)
        if calls.count("decoder") > 2:  # behind the gate and the warm-up
            raise RuntimeError("the device was lost")
        return run(graph, *inputs)

    monkeypatch.setattr(session, "run", broken)
    torch_row, broken_row = bench.rows()
    assert torch_row["seconds"]["median"] > 0.0
    assert broken_row["error"] == "RuntimeError: the device was lost"
    assert "seconds" not in broken_row
    assert [json.loads(line) for line in out.read_text().splitlines()] == [torch_row, broken_row]


def test_a_batch_beyond_the_engines_profile_is_not_timed_as_if_it_were_one(featinv, make_engine):
    engine = make_engine(metadata={"feature_shape": "6x5x5", "steps": "1"}, max_batch=2)
    answer = featinv("bench", engine, "--backends", "torch", "--batch-sizes", "2,3", *FAST, "--json")
    assert answer.code == 3
    fits, beyond = answer.json["rows"]
    assert "seconds" in fits
    assert beyond["error"] == "it takes at most 2 images at once"


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (("--samplers", "euler:5"), 2, "lcm"),
        (("--samplers", "ddim:0"), 2, "1 to 1000"),
        (("--samplers", "ddim:1:1:1"), 2, "sampler:steps:guidance"),
        (("--batch-sizes", "0"), 2, "at least 1"),
        (("--batch-sizes", "many"), 2, "1,8,32"),
        (("--backends", "tflite"), 2, "onnxruntime"),
        (("--rounds", "1"), 2, "at least 2"),
        (("--warm-up", "0"), 2, "at least 1"),
        (("--plot", "bench.tfw"), 2, ".webp"),
        (("--precision", "fp8"), 2, "bf16"),
    ],
)
def test_exit_codes_and_messages(featinv, tiny_engine, extra, code, says):
    answer = featinv("bench", tiny_engine, *FAST, *extra)
    assert (answer.code, answer.out) == (code, "")
    assert says in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_nothing_is_written_into_the_engine(featinv, tiny_engine, option):
    answer = featinv("bench", tiny_engine, *FAST, option, tiny_engine / "bench.png")
    assert (answer.code, answer.out) == (2, "")
    assert f"{option} is or lies in an input, the engine" in answer.err
    assert not (tiny_engine / "bench.png").exists()


def test_an_engine_that_is_not_there(featinv, tmp_path):
    answer = featinv("bench", tmp_path, *FAST)
    assert (answer.code, answer.out) == (2, "")
    assert "featinv-export" in answer.err
