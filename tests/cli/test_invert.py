"""`featinv invert`: from files of feature maps and from folders of images."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from featinv_fast import Runtime
from featinv_fast.commands.invert import invert
from featinv_fast.commands.invert_options import InvertOptions
from featinv_fast.errors import ArgumentError, OutOfMemoryError
from featinv_fast.features import FeatureStatisticsWarning

FAST = ("--steps", 1, "--quiet", "--threads", 1)


@pytest.fixture(scope="module")
def expected(tiny_engine, tiny_maps):
    """The images of the seven maps at seed 5."""
    return Runtime(tiny_engine, threads=1).invert(tiny_maps, steps=1, seed=5).images


@pytest.fixture
def feature_file(tmp_path, tiny_maps):
    """`feature_file(name, maps=tiny_maps)`: the maps in a file of the kind that the name says."""

    def write(name: str, maps: torch.Tensor = tiny_maps) -> Path:
        path = tmp_path / name
        match path.suffix:
            case ".npy":
                np.save(path, maps.numpy())
            case ".npz":
                np.savez(path, features=maps.numpy(), labels=np.arange(len(maps)))
            case ".safetensors":
                save_file({"features": maps.contiguous()}, path)
        return path

    return write


def _images(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("name", ["maps.npy", "maps.npz", "maps.safetensors"])
def test_features_of_every_kind_of_file(featinv, feature_file, tiny_engine, tmp_path, expected, name):
    answer = featinv(
        "invert",
        "--engine",
        tiny_engine,
        "--features",
        feature_file(name),
        "--out",
        tmp_path / "out",
        "--seed",
        5,
        *FAST,
    )
    assert (answer.code, answer.out, answer.err) == (0, f"{tmp_path / 'out'}\n", "")
    images = _images(tmp_path / "out")
    assert list(images) == [f"{row:06d}.png" for row in range(7)]
    assert np.abs(np.stack(list(images.values())).astype(int) - expected).max() <= 1


def test_json_on_stdout_is_the_record_on_the_disk(featinv, feature_file, tiny_engine, tmp_path):
    arguments = ("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy"), "--out", tmp_path / "out")
    answer = featinv(*arguments, "--samples", 2, "--steps", 1, "--json")
    assert answer.code == 0
    assert "inverting" in answer.err  # the progress bar
    record = answer.json
    assert record == json.loads((tmp_path / "out" / "inversion.json").read_text())
    assert record["engine"] == "tiny"
    assert [item["name"] for item in record["items"][:3]] == ["000000_0", "000000_1", "000001_0"]
    assert [item["seed"] for item in record["items"]] == list(range(14))
    assert not any(item["error"] for item in record["items"])
    assert record["flags"]["steps"] == 1
    assert set(_images(tmp_path / "out")) == {f"{item['name']}.png" for item in record["items"]}


def test_sampling_options_reach_the_runtime(featinv, feature_file, tiny_engine, tmp_path, tiny_maps):
    options = {"steps": 2, "sampler": "ddim", "guidance_scale": 2.5, "strength": 0.5, "eta": 0.3, "batch_size": 2}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    answer = featinv(
        *("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy", tiny_maps[:3])),
        *("--out", tmp_path / "out", "--guess-mode", "--backend", "torch", "--seed", 7, "--json", "--quiet"),
        *arguments,
    )
    assert answer.code == 0
    assert answer.json["flags"]["guidance_scale"] == 2.5
    assert (answer.json["flags"]["backend"], answer.json["flags"]["batch_size"]) == ("torch", 2)
    images = Runtime(tiny_engine, backend="torch").invert(tiny_maps[:3], seed=7, guess_mode=True, **options).images
    written = np.stack(list(_images(tmp_path / "out").values()))
    assert np.abs(written.astype(int) - images).max() <= 1


def test_chunks_do_not_show(featinv, feature_file, tiny_engine, tmp_path, tiny_maps, monkeypatch, expected):
    monkeypatch.setattr("featinv_fast.commands.invert.CHUNK", 3)
    answer = featinv(
        *("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy"), "--out", tmp_path / "out"),
        *("--seed", 5, "--json", *FAST),
    )
    assert [item["seed"] for item in answer.json["items"]] == list(range(5, 12))
    written = np.stack(list(_images(tmp_path / "out").values()))
    assert np.abs(written.astype(int) - expected).max() <= 1


def test_other_layouts_and_single_maps(featinv, feature_file, tiny_engine, tmp_path, tiny_maps, expected):
    forms = {
        "nhwc.npy": (tiny_maps.permute(0, 2, 3, 1), ["--layout", "nhwc"], 7),
        "tokens.npy": (torch.cat([torch.ones(7, 1, 6), tiny_maps.flatten(2).transpose(1, 2)], dim=1), [], 7),
        "single.npy": (tiny_maps[0], [], 1),
    }
    for name, (maps, options, count) in forms.items():
        out = tmp_path / f"{name}.out"
        path = feature_file(name, maps)
        answer = featinv(
            "invert", "--engine", tiny_engine, "--features", path, "--out", out, "--seed", 5, *options, *FAST
        )
        assert answer.code == 0
        written = np.stack(list(_images(out).values()))
        assert np.abs(written.astype(int) - expected[:count]).max() <= 1


def test_a4_some_bad_maps_make_a_partial_run(featinv, feature_file, tiny_engine, tmp_path, tiny_maps, expected):
    maps = tiny_maps.clone()
    maps[2, 0, 0, 0] = float("nan")
    answer = featinv(
        *("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy", maps), "--out", tmp_path / "out"),
        *("--seed", 5, "--json", *FAST),
    )
    assert answer.code == 3
    assert answer.err.startswith("featinv: 000002: feature map 2 holds NaN")
    assert [bool(item["error"]) for item in answer.json["items"]] == [False, False, True, False, False, False, False]
    images = _images(tmp_path / "out")
    assert "000002.png" not in images
    assert np.abs(images["000006.png"].astype(int) - expected[6]).max() <= 1


def test_a4_a_bad_map_is_named_by_its_place_in_the_file(
    featinv, feature_file, tiny_engine, tmp_path, tiny_maps, monkeypatch
):
    monkeypatch.setattr("featinv_fast.commands.invert.CHUNK", 3)
    maps = tiny_maps.clone()
    maps[5, 0, 0, 0] = float("nan")
    answer = featinv(
        *("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy", maps), "--out", tmp_path / "out"),
        *("--batch-size", 2, *FAST),
    )
    assert answer.code == 3
    assert answer.err.startswith("featinv: 000005: feature map 5 holds NaN")
    assert "errors='return'" not in answer.err  # nobody can pass that here


def test_a5_an_unusual_map_is_named_by_its_place_in_the_file(featinv, feature_file, tiny_engine, tmp_path, tiny_maps):
    maps = tiny_maps.clone()
    maps[5] = 0.0
    with pytest.warns(FeatureStatisticsWarning) as caught:
        answer = featinv(
            *("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy", maps)),
            *("--out", tmp_path / "out", "--batch-size", 2, *FAST),
        )
    assert answer.code == 0
    assert [warning.message.zero_items for warning in caught] == [(5,)]


def test_a4_nothing_but_bad_maps_is_a_failure(featinv, feature_file, tiny_engine, tmp_path, tiny_maps):
    path = feature_file("maps.npy", tiny_maps * float("nan"))
    answer = featinv("invert", "--engine", tiny_engine, "--features", path, "--out", tmp_path / "out", *FAST)
    assert answer.code == 1
    assert _images(tmp_path / "out") == {}
    assert (tmp_path / "out" / "inversion.json").exists()


def test_a6_recomputed_items_are_flagged_across_chunks(
    featinv, feature_file, tiny_engine, tmp_path, tiny_maps, monkeypatch
):
    monkeypatch.setattr("featinv_fast.commands.invert.CHUNK", 3)
    maps = tiny_maps.clone()
    maps[[1, 5]] *= 1e5
    answer = featinv(
        *("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy", maps), "--out", tmp_path / "out"),
        *("--backend", "torch", "--precision", "fp16", "--json", *FAST),
    )
    assert answer.code == 0
    assert answer.json["flags"]["recomputed"] == [1, 5]


def test_a7_an_empty_file_gives_an_empty_run(featinv, feature_file, tiny_engine, tmp_path, tiny_maps):
    path = feature_file("none.npy", tiny_maps[:0])
    answer = featinv("invert", "--engine", tiny_engine, "--features", path, "--out", tmp_path / "out", "--json", *FAST)
    assert answer.code == 0
    assert answer.json["items"] == []
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["inversion.json", "ledger.jsonl"]


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (("--steps", 0), 2, "1 to 1000"),
        (("--steps", "many"), 2, "invalid int value"),
        (("--sampler", "euler"), 2, "lcm"),
        (("--samples", 0), 2, "at least 1"),
        (("--guidance-scale", "nan"), 2, "finite"),
        (("--backend", "tflite"), 2, "onnxruntime"),
        (("--layout", "chw"), 2, "invalid choice"),
        (("--images", "pictures"), 2, "not allowed with"),
        (("--backend", "onnxruntime", "--precision", "fp16"), 1, "export with --precision fp16"),
        (("--layout", "nhwc"), 1, "shape"),
        (("--out", "/dev/null/out"), 1, "not a folder"),
        (("--engine", "missing.engine"), 2, "featinv-export"),
        (("--features", "missing.npy"), 2, "no such file"),
    ],
)
def test_exit_codes_and_messages(featinv, feature_file, tiny_engine, tmp_path, extra, code, says):
    answer = featinv(
        *("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy"), "--out", tmp_path / "out"),
        *(*FAST, *extra),
    )
    assert answer.code == code
    assert answer.out == ""
    assert says in answer.err
    assert "Traceback" not in answer.err


def test_no_source_is_wrong_usage(featinv, tiny_engine, tmp_path):
    answer = featinv("invert", "--engine", tiny_engine, "--out", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    for sources in ({}, {"images": tmp_path, "features": tmp_path}):
        with pytest.raises(ArgumentError, match="--images DIR or --features FILE"):
            InvertOptions(out=tmp_path, sampling={}, **sources)


@pytest.mark.parametrize(
    ("name", "content"), [("cut.npy", b"\x93NUMPY\x01"), ("empty.npz", b""), ("x.safetensors", b"x")]
)
def test_a_damaged_file_is_a_failure_not_wrong_usage(featinv, tiny_engine, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    answer = featinv("invert", "--features", tmp_path / name, "--out", tmp_path / "out", "--engine", tiny_engine)
    assert (answer.code, answer.out) == (1, "")
    assert "this feature file cannot be read" in answer.err
    assert not (tmp_path / "out").exists()


def test_an_earlier_run_is_not_overwritten(featinv, feature_file, tiny_engine, tmp_path):
    arguments = ("invert", "--features", feature_file("maps.npy"), "--out", tmp_path / "out", *FAST)
    assert featinv(*arguments, "--engine", tiny_engine).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    # Said before anything is loaded: there is no such engine.
    answer = featinv(*arguments, "--engine", "missing.engine", "--seed", 99)
    assert answer.code == 2
    assert "--force" in answer.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert featinv(*arguments, "--engine", tiny_engine, "--seed", 99, "--force").code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} != before


def test_a_run_that_fails_before_its_first_image_leaves_no_record(featinv, feature_file, tiny_engine, tmp_path):
    arguments = ("invert", "--engine", tiny_engine, "--features", feature_file("maps.npy"), "--out", tmp_path / "out")
    assert featinv(*arguments, "--layout", "nhwc", *FAST).code == 1
    assert featinv(*arguments, *FAST).code == 0  # without --force


def test_a8_what_was_done_before_memory_ran_out_is_on_the_disk(tiny_engine, feature_file, tmp_path):
    runtime = Runtime(tiny_engine, backend="torch", threads=1)
    session, run = runtime._executor.session, runtime._executor.session.run
    calls = []

    def exhausted(graph, *inputs):
        calls.append(graph)
        if calls.count("decoder") > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return run(graph, *inputs)

    session.run = exhausted
    options = InvertOptions(
        out=tmp_path / "out",
        features=feature_file("maps.npy"),
        sampling={"batch_size": 1, "steps": 1},
        progress=False,
    )
    with pytest.raises(OutOfMemoryError):
        invert(runtime, options)
    assert list(_images(tmp_path / "out")) == ["000000.png", "000001.png", "000002.png"]
    record = json.loads((tmp_path / "out" / "inversion.json").read_text())
    assert [bool(item["error"]) for item in record["items"]] == [False] * 3 + [True] * 4


@pytest.mark.skipif(os.name == "nt", reason="this system sends no SIGINT to another process")
def test_a12_an_interrupt_leaves_what_was_finished(tiny_engine, feature_file, tiny_maps, tmp_path):
    """A real SIGINT, sent when the progress bar says that images are finished. The whole run would take minutes."""
    steps, out = 200, tmp_path / "out"
    path = feature_file("many.npy", tiny_maps.repeat(9, 1, 1, 1))
    code = "import sys; from featinv_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["invert", "--engine", tiny_engine, "--features", path, "--out", out, "--backend", "torch"]
    arguments += ["--steps", steps, "--batch-size", 1, "--threads", 1, "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        shown, done = b"", 0
        while done <= 2 * steps:
            byte = process.stderr.read(1)
            assert byte, shown  # it ended by itself
            shown += byte
            if counted := re.search(rb"(\d+)/%d $" % (63 * steps), shown):
                done = int(counted[1])
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert output == b""
    assert b"of 63 images are in" in errors
    assert b"Traceback" not in errors
    images = _images(out)
    assert 2 <= len(images) < 63
    record = json.loads((out / "inversion.json").read_text())
    assert [item["error"] is None for item in record["items"]] == [row < len(images) for row in range(63)]
