import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featinv_fast.engine import Manifest, Stage, lock, open_engine, staging
from featinv_fast.errors import (
    ArgumentError,
    EngineExistsError,
    EngineIntegrityError,
    EngineLockedError,
    ExportError,
)

SCRIPT = Path(__file__).parent / "kill_everywhere.py"
HOLD = """
import sys, time
from featinv_fast.engine import staging
with staging(sys.argv[1], force=True) as stage:
    (stage.path / "weights.safetensors").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


def export(
    destination: str | Path,
    manifest: Manifest,
    name: str = "new",
    during: Callable[[Stage], object] = lambda _: None,
    **options: object,
) -> Path:
    """A small export, with whatever happens `during` it."""
    with staging(destination, **options) as stage:  # type: ignore[arg-type]
        (stage.path / "weights.safetensors").write_text(name)
        during(stage)
        return stage.finish(dataclasses.replace(manifest, name=name))


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_untouched(engine: Path) -> None:
    """The engine called "old" is whole and alone in its folder."""
    assert open_engine(engine).manifest.name == "old"
    assert entries(engine.parent) == [engine.name]


@contextlib.contextmanager
def another_export(destination: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of an export."""
    command = [sys.executable, "-c", HOLD, str(destination)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


def test_an_engine_is_installed(tmp_path: Path, manifest: Manifest) -> None:
    destination = tmp_path / "not" / "there" / "yet"
    with staging(destination) as stage:
        assert stage.path.parent == destination.parent
        assert not destination.exists()
        (stage.path / "weights.safetensors").write_bytes(b"1")
        assert stage.finish(manifest) == destination
    assert entries(destination.parent) == ["yet"]
    assert entries(destination) == ["manifest.json", "manifest.json.sha256", "weights.safetensors"]
    assert open_engine(destination).manifest.files["weights.safetensors"].size == 1


def test_everything_is_flushed_before_it_is_renamed(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[object] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (log.append(os.fstat(descriptor).st_ino), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "rename", lambda path, target: (log.append("rename"), rename(path, target))[1])
    engine = export(tmp_path / "engine", manifest)
    before, after = log[: log.index("rename")], log[log.index("rename") + 1 :]
    assert set(before) == {path.stat().st_ino for path in (engine, *engine.iterdir())}
    assert after == [tmp_path.stat().st_ino]


@pytest.mark.parametrize(
    "add",
    [
        lambda stage: (stage.path / "nested").mkdir(),
        lambda stage: (stage.path / "linked").symlink_to(stage.destination / "README.md"),
        lambda stage: (stage.path / ".hidden").touch(),
        lambda stage: (stage.path / "manifest.json").touch(),
    ],
    ids=["a folder", "a link", "a hidden file", "a manifest"],
)
def test_what_an_engine_cannot_hold_is_not_installed(
    engine: Path, manifest: Manifest, add: Callable[[Stage], object]
) -> None:
    with pytest.raises(ExportError, match="cannot hold these files"):
        export(engine, manifest, during=add, force=True)
    assert_untouched(engine)


def test_an_export_that_does_not_finish_installs_nothing(engine: Path) -> None:
    with staging(engine, force=True) as stage:
        (stage.path / "weights.safetensors").write_bytes(b"new")
    assert_untouched(engine)


@pytest.mark.parametrize("error", [RuntimeError("parity"), KeyboardInterrupt(), FileNotFoundError(2, "no checkpoint")])
def test_a_failed_export_installs_nothing_and_keeps_its_error(
    engine: Path, manifest: Manifest, error: BaseException
) -> None:
    def fail(stage: Stage) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        export(engine, manifest, during=fail, force=True)
    assert caught.value is error
    assert_untouched(engine)


def test_b8_an_existing_engine_is_refused_without_force(engine: Path, manifest: Manifest) -> None:
    with pytest.raises(EngineExistsError, match=f"{re.escape(str(engine))}.*(\n.*)*--force"):
        export(engine, manifest)
    with pytest.raises(FileExistsError):
        export(engine, manifest)
    assert_untouched(engine)


def test_b8_force_replaces_an_engine(engine: Path, manifest: Manifest) -> None:
    export(engine, manifest, force=True)
    assert open_engine(engine).manifest.name == "new"
    assert entries(engine) == ["manifest.json", "manifest.json.sha256", "weights.safetensors"]
    assert entries(engine.parent) == ["small"]


def test_b8_force_replaces_a_damaged_engine(engine: Path, manifest: Manifest) -> None:
    (engine / "weights.safetensors").write_bytes(b"damaged")
    (engine / "denoiser.onnx").unlink()
    export(engine, manifest, force=True)
    assert open_engine(engine).manifest.name == "new"


def test_b8_force_fills_an_empty_folder(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineExistsError):
        export(tmp_path / "empty", manifest)
    export(tmp_path / "empty", manifest, force=True)
    assert open_engine(tmp_path / "empty").manifest.name == "new"
    assert entries(tmp_path) == ["empty"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("data", ["a file", "a folder", "a foreign manifest", "notes in an engine"])
def test_b8_nothing_but_an_engine_is_ever_replaced(engine: Path, manifest: Manifest, data: str, *, force: bool) -> None:
    if data != "notes in an engine":
        shutil.rmtree(engine)
    if data == "a file":
        engine.write_text("precious")
        precious = engine
    else:
        engine.mkdir(exist_ok=True)
        precious = engine / ("manifest.json" if data == "a foreign manifest" else "thesis.txt")
        precious.write_text("precious")
    with pytest.raises(EngineExistsError, match="cannot be replaced"):
        export(engine, manifest, force=force)
    assert precious.read_text() == "precious"
    assert entries(engine.parent) == ["small"]


@pytest.mark.parametrize("force", [False, True])
def test_b8_data_that_appears_during_the_export_is_kept(tmp_path: Path, manifest: Manifest, *, force: bool) -> None:
    destination = tmp_path / "engine"

    def appear(stage: Stage) -> None:
        destination.mkdir()
        (destination / "thesis.txt").write_text("precious")

    with pytest.raises(EngineExistsError):
        export(destination, manifest, during=appear, force=force)
    assert (destination / "thesis.txt").read_text() == "precious"
    assert entries(tmp_path) == ["engine"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("force", [False, True])
def test_b8_a_read_only_place(
    engine: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, code: int, *, force: bool
) -> None:
    """Root may write where modes forbid it, so the system's refusal is played."""
    original = os.open

    def refuse(path: str | Path, flags: int, *arguments: int, **options: int) -> int:
        if Path(path).parent == engine.parent and flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), str(path))
        return original(path, flags, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(ExportError, match=re.escape(os.strerror(code))):
            export(engine if force else engine.with_name("other"), manifest, force=force)
    assert_untouched(engine)


def test_b8_a_parent_that_is_a_file(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ExportError, match="cannot be written"):
        export(tmp_path / "file" / "engine", manifest)
    assert (tmp_path / "file").read_text() == "precious"


def test_b8_space_is_checked_first(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(engine)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = r"too little space(.|\n)*given: 3 MiB free\n  expected: 5,000 MiB"
    with pytest.raises(ExportError, match=message), staging(engine, force=True, required_bytes=5000 * 2**20):
        pytest.fail("the export must not start")
    assert_untouched(engine)
    with staging(engine, force=True, required_bytes=3 * 2**20) as stage:
        assert stage.path.is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("when", ["writing", "flushing"])
def test_b8_a_disk_that_fills_up(
    engine: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, code: int, when: str
) -> None:
    def full(_: object) -> None:
        raise OSError(code, os.strerror(code))

    def fill(stage: Stage) -> None:
        if when == "writing":
            full(stage)
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ExportError, match="the disk is full"):
        export(engine, manifest, during=fill, force=True)
    assert_untouched(engine)


@pytest.mark.parametrize(
    "name",
    ["with space", "ünïcødé 模型", "a'b\"c", "$HOME;*?[x]", "-rf", "dots.v1.engine", "new\nline", ".hidden", "x/"],
)
def test_b8_odd_names(tmp_path: Path, manifest: Manifest, name: str) -> None:
    destination = f"{tmp_path}/engines/{name}"
    export(destination, manifest, "old")
    export(destination, manifest, "new", force=True)
    assert open_engine(destination).manifest.name == "new"
    assert entries(tmp_path / "engines") == [name.rstrip("/")]


def test_b8_relative_names_and_links(engine: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engine)
    export("../other/", manifest)
    assert open_engine(engine.with_name("other")).manifest.name == "new"
    link = engine.with_name("latest")
    link.symlink_to("small")
    export(link, manifest, force=True)
    assert link.is_symlink()
    assert open_engine(engine).manifest.name == "new"


@pytest.mark.parametrize("name", ["/", "engine.featinv-partial", ".engine.featinv-previous", "\0"])
def test_b8_names_that_cannot_be(tmp_path: Path, manifest: Manifest, name: str) -> None:
    with pytest.raises(ArgumentError):
        export(tmp_path / name, manifest)


def test_b8_a_name_that_is_too_long(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        export(tmp_path / ("x" * 300), manifest)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("mode", ["fresh", "force"])
def test_b9_killed_at_every_operation(tmp_path: Path, manifest: Manifest, mode: str) -> None:
    (tmp_path / "manifest").write_bytes(manifest.to_json())
    command = [sys.executable, SCRIPT, tmp_path, tmp_path / "manifest", mode]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) > 10
    before = "old" if mode == "force" else "none"
    for row in rows:
        assert row["found"] in (before, "none", "new"), row
        assert row["leftovers_that_open"] == [], row
        assert row.get("set_aside", "old") == "old", row
        # Whatever was complete at the kill, the old engine or the new one, has survived it and a failed run.
        kept = "new" if row["found"] == "new" else before
        assert row["found_after_failure"] == kept, row
        assert row["entries_after_failure"] == ([] if kept == "none" else ["engine"]), row
        assert row["found_at_the_end"] == "newest", row
        assert row["entries_at_the_end"] == ["engine"], row
    found = [row["found"] for row in rows]
    assert found[0] == before
    assert found[-1] == "new"
    # Only between the two renames of a replacement is there no engine.
    assert found.count("none") == (1 if mode == "force" else found.index("new"))


def test_b9_an_export_killed_while_it_writes(engine: Path, manifest: Manifest) -> None:
    with another_export(engine) as process:
        assert len(entries(engine.parent)) == 3  # the engine, the lock, the half-written folder
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert open_engine(engine).manifest.name == "old"
        assert len(entries(engine.parent)) == 3
    with pytest.raises(EngineExistsError):
        export(engine, manifest)
    assert_untouched(engine)


def test_b9_an_old_engine_set_aside_is_restored(
    engine: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    engine.rename(engine.with_name(".small.featinv-previous"))
    with caplog.at_level(logging.WARNING), pytest.raises(EngineExistsError):
        export(engine, manifest)
    assert f"restored the engine {engine}" in caplog.text
    assert_untouched(engine)


def test_b9_an_old_engine_set_aside_outlives_foreign_data_in_its_place(engine: Path, manifest: Manifest) -> None:
    previous = engine.rename(engine.with_name(".small.featinv-previous"))
    engine.mkdir()
    for force in (False, True):
        with pytest.raises((EngineExistsError, ExportError)):
            export(engine, manifest, force=force)
        assert open_engine(previous.rename(engine.with_name("copy"))).manifest.name == "old"
        previous = engine.with_name("copy").rename(previous)


@pytest.mark.parametrize("failing", [1, 2])
def test_b9_a_rename_that_fails(
    engine: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls: list[Path] = []
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(ExportError, match="busy"):
            export(engine, manifest, force=True)
    assert len(calls) == (1 if failing == 1 else 3)
    assert_untouched(engine)


def test_b9_only_leftovers_of_this_engine_are_removed(engine: Path, manifest: Manifest) -> None:
    names = [
        ".small.1-0123abcd.featinv-partial",
        ".small.more.1-0123abcd.featinv-partial",
        ".other.1-0123abcd.featinv-partial",
        ".small.featinv-partial",
        "small.1-0123abcd.featinv-partial",
    ]
    for name in names:
        engine.with_name(name).mkdir()
        (engine.with_name(name) / "weights.safetensors").write_bytes(b"1")
    export(engine, manifest, force=True)
    assert entries(engine.parent) == sorted([*names[1:], "small"])


def test_b10_a_second_export_leaves_and_names_the_first(engine: Path, manifest: Manifest) -> None:
    with another_export(engine) as process:
        with pytest.raises(EngineLockedError, match=rf"held by process {process.pid} on \S+"):
            export(engine, manifest, force=True)
        assert open_engine(engine).manifest.name == "old"
        assert process.poll() is None
        # Another engine beside it is nobody's concern.
        export(engine.with_name("other"), manifest)


def test_b10_a_second_export_in_the_same_process(engine: Path, manifest: Manifest) -> None:
    with staging(engine, force=True) as stage:
        (stage.path / "weights.safetensors").write_bytes(b"1")
        with pytest.raises(EngineLockedError, match=f"process {os.getpid()} "):
            export(engine, manifest, force=True)
        stage.finish(dataclasses.replace(manifest, name="first"))
    assert open_engine(engine).manifest.name == "first"
    assert entries(engine.parent) == ["small"]


def test_b10_the_lock_of_a_dead_process_is_free(engine: Path, manifest: Manifest) -> None:
    with another_export(engine) as process:
        process.kill()
        process.wait()
        assert ".small.featinv-lock" in entries(engine.parent)
        export(engine, manifest, force=True)
    assert open_engine(engine).manifest.name == "new"
    assert entries(engine.parent) == ["small"]


def test_b10_what_a_stale_lock_says_does_not_matter(engine: Path, manifest: Manifest) -> None:
    engine.with_name(".small.featinv-lock").write_text(f"process {os.getpid()} on this machine, running" * 9)
    export(engine, manifest, force=True)
    assert open_engine(engine).manifest.name == "new"


def test_b10_a_lock_file_is_not_followed_elsewhere(engine: Path, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    engine.with_name(".small.featinv-lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ExportError, match="cannot be written"):
        export(engine, manifest, force=True)
    assert (tmp_path / "precious").read_text() == "precious"


def test_b10_the_lock_excludes_while_its_file_comes_and_goes(tmp_path: Path) -> None:
    """Removing a lock file invites a classic race: two holders, one of them of a file without a name."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    failures: list[BaseException] = []

    def count() -> None:
        try:
            done = 0
            while done < 50:
                with contextlib.suppress(EngineLockedError), lock.exclusive_lock(tmp_path / "lock"):
                    counter.write_text(str(int(counter.read_text()) + 1))
                    done += 1
        except BaseException as error:  # noqa: BLE001 -- shown by the test
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert counter.read_text() == "200"
    assert entries(tmp_path) == ["counter"]


def test_c1_an_installed_engine_is_what_was_staged(tmp_path: Path, manifest: Manifest) -> None:
    engine = export(tmp_path / "engine", manifest)
    (engine / "weights.safetensors").write_text("NEW")
    with pytest.raises(EngineIntegrityError, match=r"weights\.safetensors was changed"):
        open_engine(engine)
