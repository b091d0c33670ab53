"""Kill an export (signal 9) before its first operation on files, before its second, and so on to the end.

    python kill_everywhere.py FOLDER MANIFEST fresh|force

prints one JSON object per kill. Run by test_install.py in a process of its own because it forks.
"""

import dataclasses
import itertools
import json
import os
import signal
import sys
from pathlib import Path

from featinv_fast.engine import Manifest, open_engine, staging
from featinv_fast.errors import EngineNotFoundError


def export(destination: Path, manifest: Manifest, name: str, *, force: bool) -> None:
    with staging(destination, force=force) as stage:
        (stage.path / "weights.safetensors").write_text(name * 1000)
        (stage.path / "README.md").write_text(name)
        stage.finish(dataclasses.replace(manifest, name=name))


def fail(destination: Path) -> None:
    try:
        with staging(destination, force=True) as stage:
            (stage.path / "weights.safetensors").write_text("half")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def found(path: Path) -> str:
    """Which engine opens at `path`: its name, "none" or the error that no kill may cause."""
    try:
        engine = open_engine(path)
    except EngineNotFoundError:
        return "none"
    except Exception as error:  # noqa: BLE001 -- the test shows it
        return repr(error)
    assert engine.file("README.md").read_text() == engine.manifest.name
    return engine.manifest.name


def killed_before(point: int, destination: Path, manifest: Manifest, *, force: bool) -> str:
    """Run the export in a child; the operation it was killed before, or "" if it came through."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        counter = itertools.count()

        def kill(event: str, arguments: tuple[object, ...]) -> None:
            if event.startswith(("open", "os.", "shutil.", "fcntl.")) and next(counter) == point:
                os.write(writer, f"{event} {arguments}".encode())
                signal.raise_signal(signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            export(destination, manifest, "new", force=force)
        except BaseException:  # noqa: BLE001 -- the child must end here, whatever it is
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        event = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if event else 0), (status, event)
    return event


def main(folder: Path, manifest: Manifest, *, force: bool) -> None:
    for point in itertools.count():
        parent = folder / str(point)
        destination = parent / "engine"
        if force:
            export(destination, manifest, "old", force=False)
        event = killed_before(point, destination, manifest, force=force)
        row: dict[str, object] = {"point": point, "event": event, "found": found(destination)}
        others = [entry for entry in parent.iterdir() if entry != destination] if parent.exists() else []
        row["leftovers_that_open"] = [entry.name for entry in others if found(entry) != "none"]
        previous = parent / ".engine.featinv-previous"
        if previous.exists():
            row["set_aside"] = found(previous.rename(parent / "copy"))
            (parent / "copy").rename(previous)
        fail(destination)
        row["found_after_failure"] = found(destination)
        row["entries_after_failure"] = sorted(entry.name for entry in parent.iterdir())
        export(destination, manifest, "newest", force=True)
        row["found_at_the_end"] = found(destination)
        row["entries_at_the_end"] = sorted(entry.name for entry in parent.iterdir())
        sys.stdout.write(json.dumps(row) + "\n")
        if not event:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Manifest.from_json(Path(sys.argv[2]).read_bytes()), force=sys.argv[3] == "force")
