"""`featinv invert` started again goes on; nothing of the user's is replaced, and no name costs another picture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featinv_fast import Runtime, demo
from featinv_fast.commands import invert as command
from featinv_fast.commands.invert import InvertInterrupted, invert
from featinv_fast.commands.invert_options import InvertOptions
from featinv_fast.errors import LockedError, OutputExistsError
from featinv_fast.jobs.ledger import LEDGER, open_ledger

SAMPLING = {"steps": 1, "batch_size": 2}


@pytest.fixture(scope="module")
def runtime(tiny_engine):
    return Runtime(tiny_engine, backend="torch", threads=1)


@pytest.fixture
def maps(tmp_path, tiny_maps) -> Path:
    np.save(tmp_path / "maps.npy", tiny_maps.numpy())
    return tmp_path / "maps.npy"


@pytest.fixture
def options(tmp_path, maps):
    """`options(**changes)`: of an inversion of seven maps, two at a time."""

    def make(**changes) -> InvertOptions:
        given = {"out": tmp_path / "out", "features": maps, "sampling": SAMPLING, "progress": False}
        return InvertOptions(**given | changes)

    return make


@pytest.fixture
def calls(runtime, monkeypatch):
    """The number of maps in each call of the runtime; `calls.stop_at` ends the call of that number as Ctrl-C does."""

    class Calls(list):
        stop_at = None

    calls, inner = Calls(), runtime.invert

    def counted(maps, **options):
        if calls.stop_at == len(calls):
            raise KeyboardInterrupt
        calls.append(len(maps))
        return inner(maps, **options)

    monkeypatch.setattr(runtime, "invert", counted)
    return calls


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LEDGER}


def items(folder: Path) -> list[dict]:
    return json.loads((folder / "inversion.json").read_text())["items"]


def test_a_stopped_run_goes_on_and_ends_like_one_that_was_not(runtime, options, calls, tmp_path):
    whole = invert(runtime, options(out=tmp_path / "whole"))
    assert calls == [2, 2, 2, 1]
    calls.clear()
    calls.stop_at = 2
    with pytest.raises(InvertInterrupted, match="4 of 7 images are in"):
        invert(runtime, options())
    assert [item["error"] is None for item in items(tmp_path / "out")] == [True] * 4 + [False] * 3
    assert json.loads((tmp_path / "out" / "inversion.json").read_text())["complete"] is False
    calls.stop_at = None
    calls.clear()
    assert invert(runtime, options()) == whole
    assert calls == [2, 1]
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    calls.clear()
    assert invert(runtime, options()) == whole  # nothing is left to do
    assert calls == []


def test_what_has_no_picture_any_more_is_made_again(runtime, options, calls, tmp_path):
    invert(runtime, options())
    before = content(tmp_path / "out")
    (tmp_path / "out" / "000003.png").unlink()
    calls.clear()
    invert(runtime, options())
    assert calls == [1]
    assert content(tmp_path / "out").keys() == before.keys()


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"sampling": SAMPLING | {"seed": 1}}, "sampling.seed: 1"),
        ({"sampling": SAMPLING | {"steps": 2}}, "sampling.steps: 2"),
        ({"sampling": {"steps": 1}}, "sampling.batch_size: None"),
        ({"layout": "nchw"}, "layout: 'nchw'"),
    ],
)
def test_other_settings_are_refused_before_anything_is_loaded(runtime, options, tmp_path, changes, differs):
    invert(runtime, options())
    before = content(tmp_path / "out")
    with pytest.raises(OutputExistsError, match=differs):
        options(**changes)
    assert content(tmp_path / "out") == before


def test_another_engine_is_refused_by_its_hash(runtime, options, tiny_engine, restage, tmp_path):
    invert(runtime, options())
    engine = restage(tiny_engine, tmp_path / "other.engine", created="2000-01-01T00:00:00+00:00")
    other = Runtime(engine, backend="torch", threads=1)
    with pytest.raises(OutputExistsError, match=r"engine\.sha256: '[0-9a-f]{64}'"):
        invert(other, options())


def test_new_inputs_are_done_and_changed_ones_refused(runtime, options, calls, maps, tiny_maps, tmp_path):
    invert(runtime, options())
    before = content(tmp_path / "out")
    calls.clear()
    np.save(maps, torch.cat([tiny_maps, tiny_maps[:1]]).numpy())
    record = invert(runtime, options())
    assert calls == [1]
    assert [item["seed"] for item in record["items"]] == list(range(8))
    after = content(tmp_path / "out")
    assert {name for name in after if after[name] != before.get(name)} == {"000007.png", "inversion.json"}
    changed = tiny_maps.clone()
    changed[[2, 5]] *= 2
    np.save(maps, changed.numpy())
    with pytest.raises(OutputExistsError, match="000002, 000005"):
        invert(runtime, options())
    assert content(tmp_path / "out") == after


def test_a_failed_item_is_tried_again(runtime, options, calls, maps, tiny_maps):
    bad = tiny_maps.clone()
    bad[3] = float("nan")
    np.save(maps, bad.numpy())
    assert [bool(item["error"]) for item in invert(runtime, options())["items"]] == [False] * 3 + [True] + [False] * 3
    calls.clear()
    np.save(maps, tiny_maps.numpy())
    assert not any(item["error"] for item in invert(runtime, options())["items"])
    assert calls == [1]


def test_force_removes_what_the_earlier_run_wrote_and_nothing_else(runtime, options, maps, tiny_maps, tmp_path):
    invert(runtime, options())
    (tmp_path / "out" / "own.png").write_bytes(b"the user's")
    np.save(maps, tiny_maps[:3].numpy())
    invert(runtime, options(force=True, sampling=SAMPLING | {"seed": 9}))
    assert sorted(content(tmp_path / "out")) == ["000000.png", "000001.png", "000002.png", "inversion.json", "own.png"]
    assert [item["seed"] for item in items(tmp_path / "out")] == [9, 10, 11]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["000000.png", "000006.png", "inversion.json"])
def test_files_of_the_users_own_are_never_replaced(runtime, options, calls, tmp_path, name, force):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"the user's")
    with pytest.raises(OutputExistsError, match=r"no (run|ledger)"):
        invert(runtime, options(force=force))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {name: b"the user's"}
    assert calls == []


def test_a_second_process_is_refused(runtime, options, tmp_path):
    second = options()
    with (
        open_ledger(tmp_path / "out", {}, work="inversion", remedy=""),
        pytest.raises(LockedError, match="another inversion is writing this folder"),
    ):
        invert(runtime, second)


def test_a_failed_picture_costs_only_itself_and_a_full_disk_nothing_that_was_written(
    runtime, options, calls, tmp_path, monkeypatch
):
    save = Image.Image.save

    def failing(number, after):
        saved = []

        def one(image, file, *arguments, **options):
            saved.append(1)
            if len(saved) > after:
                raise OSError(number, os.strerror(number))
            save(image, file, *arguments, **options)

        monkeypatch.setattr(Image.Image, "save", one)
        monkeypatch.setattr(command, "WRITERS", 1)

    failing(36, after=6)  # a name that is too long
    assert [bool(item["error"]) for item in invert(runtime, options())["items"]] == [False] * 6 + [True]
    failing(28, after=3)  # no space left
    with pytest.raises(OSError, match="disk is full"):
        invert(runtime, options(out=tmp_path / "full"))
    monkeypatch.undo()
    assert sorted(content(tmp_path / "full")) == ["000000.png", "000001.png", "000002.png"]
    whole = content(tmp_path / "out") | {"000006.png": None}
    invert(runtime, options(out=tmp_path / "full"))
    assert content(tmp_path / "full").keys() == whole.keys()


@pytest.fixture(scope="module")
def image_runtime(stand_ins):
    return Runtime(stand_ins / "student", backend="torch", threads=1)


@pytest.fixture
def image_options(tmp_path, monkeypatch, installed):
    """`image_options(names, **changes)`: of an inversion of pictures of these names."""
    monkeypatch.setattr(command, "open_backbone", lambda *_, **__: demo.backbone())

    def make(names, **changes) -> InvertOptions:
        for number, name in enumerate(names):
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                Image.new("RGB", (64, 64), (number * 20, 99, 0)).save(file, "PNG")
        given = {"out": tmp_path / "out", "images": tmp_path / "in", "sampling": {}, "progress": False}
        return InvertOptions(**given | changes)

    return make


def test_odd_names_cost_nothing_and_lead_back_to_their_images(image_runtime, image_options, tmp_path):
    odd = ["x" * 250 + ".png", "a\nb.png", "con.png", "Cat.png", "cat.png", "a__b.png", "a/b.png", "plain.png"]
    odd.append(os.fsdecode(b"caf\xe9.png"))
    record = invert(image_runtime, image_options(odd))
    assert not any(item["error"] for item in record["items"])
    written = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert written == {f"{item['name']}.png" for item in record["items"]}
    assert len({name.casefold() for name in written}) == len(odd)
    assert all(len(name.encode()) < 143 and name.isprintable() for name in written)
    assert "plain.png" in written
    sources = [os.fsdecode(bytes.fromhex(item.get("source_bytes", ""))) or item["source"] for item in record["items"]]
    assert sorted(sources) == sorted(odd)
    text = (tmp_path / "out" / "inversion.json").read_text(encoding="ascii")
    json.dumps(json.loads(text), ensure_ascii=False).encode()  # no half characters


@pytest.mark.parametrize("out", ["in/out", "in/deep/out"])
def test_results_below_the_images_are_no_images(image_runtime, image_options, tmp_path, out):
    for _ in range(2):
        record = invert(image_runtime, image_options(["1.png", "deep/2.png"], out=tmp_path / out))
        assert [item["source"] for item in record["items"]] == ["1.png", "deep/2.png"]


def test_results_among_the_images_are_refused(image_runtime, image_options, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in", "in/../in", "link"):
        with pytest.raises(ValueError, match="among the images"):
            invert(image_runtime, image_options(["1.png"], out=tmp_path / out))
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["1.png"]


def test_the_record_holds_what_repeats_the_run(runtime, options, maps):
    sampling = SAMPLING | {"seed": 3, "strength": 0.5, "eta": 0.1, "guess_mode": True}
    run = invert(runtime, options(sampling=sampling))["run"]
    assert run["engine"]["sha256"] == runtime.engine.checksum.split()[0].decode()
    assert run["given"]["sampling"] == sampling | {"samples": 1}
    assert run["given"]["features"] == str(maps)
    assert {"torch", "numpy", "featinv-fast"} <= run["versions"].keys()
    assert run["runs"] == run["runs"] | {"backend": "torch", "device": "cpu", "precision": "fp32"}


@pytest.mark.skipif(os.name == "nt", reason="this system sends no SIGTERM to another process")
def test_sigterm_ends_with_143_and_the_same_command_goes_on(tiny_engine, tmp_path, tiny_maps, featinv):
    """Two maps at a time of many; the signal comes when the first picture is there."""
    np.save(tmp_path / "many.npy", tiny_maps.repeat(12, 1, 1, 1).numpy())
    arguments = ["invert", "--engine", tiny_engine, "--features", tmp_path / "many.npy", "--out", tmp_path / "out"]
    arguments += ["--backend", "torch", "--steps", 3, "--batch-size", 2, "--threads", 1, "--quiet"]
    code = "import sys; from featinv_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not list((tmp_path / "out").glob("*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, b"")
    assert b"of 84 images are in" in err
    assert b"Traceback" not in err
    done = {name: data for name, data in content(tmp_path / "out").items() if name.endswith(".png")}
    assert sum(item["error"] is None for item in items(tmp_path / "out")) == len(done)
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    assert featinv(*arguments).code == 0
    assert len(items(tmp_path / "out")) == 84
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == times
