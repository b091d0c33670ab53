import contextlib
import dataclasses
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featinv_fast.engine import Manifest, lock, open_engine, staging
from featinv_fast.errors import (
    EngineExistsError,
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


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


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


def test_b9_an_export_killed_while_it_writes(
    engine: Path, export: Callable[..., Path], assert_untouched: Callable[[], None]
) -> None:
    with another_export(engine) as process:
        assert len(entries(engine.parent)) == 3  # the engine, the lock, the half-written folder
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert open_engine(engine).manifest.name == "old"
        assert len(entries(engine.parent)) == 3
    with pytest.raises(EngineExistsError):
        export(engine)
    assert_untouched()


def test_b9_an_old_engine_set_aside_is_restored(
    engine: Path, export: Callable[..., Path], assert_untouched: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    engine.rename(engine.with_name(".small.featinv-previous"))
    with caplog.at_level(logging.WARNING), pytest.raises(EngineExistsError):
        export(engine)
    assert f"restored the engine {engine}" in caplog.text
    assert_untouched()


def test_b9_an_old_engine_set_aside_outlives_foreign_data_in_its_place(
    engine: Path, export: Callable[..., Path]
) -> None:
    previous = engine.rename(engine.with_name(".small.featinv-previous"))
    engine.mkdir()
    for force in (False, True):
        with pytest.raises((EngineExistsError, ExportError)):
            export(engine, force=force)
        assert open_engine(previous.rename(engine.with_name("copy"))).manifest.name == "old"
        previous = engine.with_name("copy").rename(previous)


@pytest.mark.parametrize("failing", [1, 2])
def test_b9_a_rename_that_fails(
    engine: Path,
    export: Callable[..., Path],
    assert_untouched: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
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
            export(engine, force=True)
    assert len(calls) == (1 if failing == 1 else 3)
    assert_untouched()


def test_b9_only_leftovers_of_this_engine_are_removed(engine: Path, export: Callable[..., Path]) -> None:
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
    export(engine, force=True)
    assert entries(engine.parent) == sorted([*names[1:], "small"])


def test_b10_a_second_export_leaves_and_names_the_first(engine: Path, export: Callable[..., Path]) -> None:
    with another_export(engine) as process:
        with pytest.raises(EngineLockedError, match=rf"held by process {process.pid} on \S+"):
            export(engine, force=True)
        assert open_engine(engine).manifest.name == "old"
        assert process.poll() is None
        # Another engine beside it is nobody's concern.
        export(engine.with_name("other"))


def test_b10_a_second_export_in_the_same_process(engine: Path, manifest: Manifest, export: Callable[..., Path]) -> None:
    with staging(engine, force=True) as stage:
        (stage.path / "weights.safetensors").write_bytes(b"1")
        with pytest.raises(EngineLockedError, match=f"process {os.getpid()} "):
            export(engine, force=True)
        stage.finish(dataclasses.replace(manifest, name="first"))
    assert open_engine(engine).manifest.name == "first"
    assert entries(engine.parent) == ["small"]


def test_b10_the_lock_of_a_dead_process_is_free(engine: Path, export: Callable[..., Path]) -> None:
    with another_export(engine) as process:
        process.kill()
        process.wait()
        assert ".small.featinv-lock" in entries(engine.parent)
        export(engine, force=True)
    assert open_engine(engine).manifest.name == "new"
    assert entries(engine.parent) == ["small"]


def test_b10_what_a_stale_lock_says_does_not_matter(engine: Path, export: Callable[..., Path]) -> None:
    engine.with_name(".small.featinv-lock").write_text(f"process {os.getpid()} on this machine, running" * 9)
    export(engine, force=True)
    assert open_engine(engine).manifest.name == "new"


def test_b10_a_lock_file_is_not_followed_elsewhere(engine: Path, export: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    engine.with_name(".small.featinv-lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ExportError, match="cannot be written"):
        export(engine, force=True)
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
