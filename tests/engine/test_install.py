import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from featinv_fast.engine import Manifest, Stage, open_engine, staging
from featinv_fast.errors import (
    ArgumentError,
    EngineExistsError,
    EngineIntegrityError,
    ExportError,
)


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


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
    tmp_path: Path, export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[object] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (log.append(os.fstat(descriptor).st_ino), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "rename", lambda path, target: (log.append("rename"), rename(path, target))[1])
    engine = export(tmp_path / "engine")
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
    engine: Path, export: Callable[..., Path], assert_untouched: Callable[[], None], add: Callable[[Stage], object]
) -> None:
    with pytest.raises(ExportError, match="cannot hold these files"):
        export(engine, during=add, force=True)
    assert_untouched()


def test_an_export_that_does_not_finish_installs_nothing(engine: Path, assert_untouched: Callable[[], None]) -> None:
    with staging(engine, force=True) as stage:
        (stage.path / "weights.safetensors").write_bytes(b"new")
    assert_untouched()


@pytest.mark.parametrize("error", [RuntimeError("parity"), KeyboardInterrupt(), FileNotFoundError(2, "no checkpoint")])
def test_a_failed_export_installs_nothing_and_keeps_its_error(
    engine: Path, export: Callable[..., Path], assert_untouched: Callable[[], None], error: BaseException
) -> None:
    def fail(stage: Stage) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        export(engine, during=fail, force=True)
    assert caught.value is error
    assert_untouched()


def test_b8_an_existing_engine_is_refused_without_force(
    engine: Path, export: Callable[..., Path], assert_untouched: Callable[[], None]
) -> None:
    with pytest.raises(EngineExistsError, match=f"{re.escape(str(engine))}.*(\n.*)*force=True"):
        export(engine)
    with pytest.raises(FileExistsError):
        export(engine)
    assert_untouched()


def test_b8_force_replaces_an_engine(engine: Path, export: Callable[..., Path]) -> None:
    export(engine, force=True)
    assert open_engine(engine).manifest.name == "new"
    assert entries(engine) == ["manifest.json", "manifest.json.sha256", "weights.safetensors"]
    assert entries(engine.parent) == ["small"]


def test_b8_force_replaces_a_damaged_engine(engine: Path, export: Callable[..., Path]) -> None:
    (engine / "weights.safetensors").write_bytes(b"damaged")
    (engine / "denoiser.onnx").unlink()
    export(engine, force=True)
    assert open_engine(engine).manifest.name == "new"


def test_b8_force_fills_an_empty_folder(tmp_path: Path, export: Callable[..., Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineExistsError):
        export(tmp_path / "empty")
    export(tmp_path / "empty", force=True)
    assert open_engine(tmp_path / "empty").manifest.name == "new"
    assert entries(tmp_path) == ["empty"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("data", ["a file", "a folder", "a foreign manifest", "notes in an engine"])
def test_b8_nothing_but_an_engine_is_ever_replaced(
    engine: Path, export: Callable[..., Path], data: str, *, force: bool
) -> None:
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
        export(engine, force=force)
    assert precious.read_text() == "precious"
    assert entries(engine.parent) == ["small"]


@pytest.mark.parametrize("force", [False, True])
def test_b8_data_that_appears_during_the_export_is_kept(
    tmp_path: Path, export: Callable[..., Path], *, force: bool
) -> None:
    destination = tmp_path / "engine"

    def appear(stage: Stage) -> None:
        destination.mkdir()
        (destination / "thesis.txt").write_text("precious")

    with pytest.raises(EngineExistsError):
        export(destination, during=appear, force=force)
    assert (destination / "thesis.txt").read_text() == "precious"
    assert entries(tmp_path) == ["engine"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("force", [False, True])
def test_b8_a_read_only_place(
    engine: Path,
    export: Callable[..., Path],
    assert_untouched: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    *,
    force: bool,
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
            export(engine if force else engine.with_name("other"), force=force)
    assert_untouched()


def test_b8_a_parent_that_is_a_file(tmp_path: Path, export: Callable[..., Path]) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ExportError, match="cannot be written"):
        export(tmp_path / "file" / "engine")
    assert (tmp_path / "file").read_text() == "precious"


def test_b8_space_is_checked_first(
    engine: Path, monkeypatch: pytest.MonkeyPatch, assert_untouched: Callable[[], None]
) -> None:
    usage = shutil.disk_usage(engine)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = r"too little space(.|\n)*given: 3 MiB free\n  expected: 5,000 MiB"
    with pytest.raises(ExportError, match=message), staging(engine, force=True, required_bytes=5000 * 2**20):
        pytest.fail("the export must not start")
    assert_untouched()
    with staging(engine, force=True, required_bytes=3 * 2**20) as stage:
        assert stage.path.is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("when", ["writing", "flushing"])
def test_b8_a_disk_that_fills_up(
    engine: Path,
    export: Callable[..., Path],
    assert_untouched: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    when: str,
) -> None:
    def full(_: object) -> None:
        raise OSError(code, os.strerror(code))

    def fill(stage: Stage) -> None:
        if when == "writing":
            full(stage)
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ExportError, match="the disk is full"):
        export(engine, during=fill, force=True)
    assert_untouched()


@pytest.mark.parametrize(
    "name",
    ["with space", "ünïcødé 模型", "a'b\"c", "$HOME;*?[x]", "-rf", "dots.v1.engine", "new\nline", ".hidden", "x/"],
)
def test_b8_odd_names(tmp_path: Path, export: Callable[..., Path], name: str) -> None:
    destination = f"{tmp_path}/engines/{name}"
    export(destination, "old")
    export(destination, "new", force=True)
    assert open_engine(destination).manifest.name == "new"
    assert entries(tmp_path / "engines") == [name.rstrip("/")]


def test_b8_relative_names_and_links(
    engine: Path, export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(engine)
    export("../other/")
    assert open_engine(engine.with_name("other")).manifest.name == "new"
    link = engine.with_name("latest")
    link.symlink_to("small")
    export(link, force=True)
    assert link.is_symlink()
    assert open_engine(engine).manifest.name == "new"


@pytest.mark.parametrize("name", ["/", "engine.featinv-partial", ".engine.featinv-previous", "\0"])
def test_b8_names_that_cannot_be(tmp_path: Path, export: Callable[..., Path], name: str) -> None:
    with pytest.raises(ArgumentError):
        export(tmp_path / name)


def test_b8_a_name_that_is_too_long(tmp_path: Path, export: Callable[..., Path]) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        export(tmp_path / ("x" * 300))
    assert entries(tmp_path) == []


def test_c1_an_installed_engine_is_what_was_staged(tmp_path: Path, export: Callable[..., Path]) -> None:
    engine = export(tmp_path / "engine")
    (engine / "weights.safetensors").write_text("NEW")
    with pytest.raises(EngineIntegrityError, match=r"weights\.safetensors was changed"):
        open_engine(engine)
