import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featinv_fast.engine import EngineFolder, FileInfo, Manifest, files, open_engine
from featinv_fast.errors import (
    ArgumentError,
    EngineFormatError,
    EngineIntegrityError,
    EngineNotFoundError,
)

# A manifest, weights, and a graph of every kind.
NAMES = [
    "manifest.json",
    "manifest.json.sha256",
    "weights.safetensors",
    "denoiser.onnx",
    "denoiser.plan",
    "denoiser.pt2",
    "README.md",
]


def refuses(engine: Path, name: str) -> None:
    """The engine is refused and the message names the file."""
    with pytest.raises(EngineIntegrityError, match=re.escape(name)):
        open_engine(engine)


def rewrite_manifest(engine: Path, content: bytes) -> None:
    """A manifest that agrees with its checksum, as someone who means harm would write it."""
    (engine / "manifest.json").write_bytes(content)
    (engine / "manifest.json.sha256").write_bytes(files.manifest_checksum(content))


def test_an_engine_opens(engine: Path, manifest: Manifest) -> None:
    opened = open_engine(engine)
    assert dataclasses.replace(opened.manifest, files={}) == manifest
    assert {*opened.manifest.files, "manifest.json", "manifest.json.sha256"} == {*NAMES, "empty.bin"}
    weights = opened.file("weights.safetensors")
    info = opened.manifest.files["weights.safetensors"]
    assert info == FileInfo(sha256=hashlib.sha256(weights.read_bytes()).hexdigest(), size=1280)
    assert weights.parent == opened.path == engine
    assert opened.graph_specs() == manifest.graph_specs()


def test_paths_may_be_relative_strings_or_links(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latest").symlink_to(engine, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert open_engine("latest/").path == open_engine(os.path.join("engines", "small")).path == engine  # noqa: PTH118


def test_files_larger_than_a_chunk_are_hashed_whole(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)
    assert open_engine(engine).manifest.files["weights.safetensors"].size == 1280
    flip(engine / "weights.safetensors", 1279)
    refuses(engine, "weights.safetensors")


def test_a_file_that_the_engine_lacks_is_named(engine: Path) -> None:
    opened = open_engine(engine)
    for name in ("decoder.pt2", "manifest.json", "../small/README.md"):
        with pytest.raises(EngineNotFoundError, match=re.escape(name)):
            opened.file(name)


def test_sha256sum_accepts_the_checksum_file(engine: Path) -> None:
    digest = hashlib.sha256((engine / "manifest.json").read_bytes()).hexdigest()
    assert (engine / "manifest.json.sha256").read_text() == f"{digest}  manifest.json\n"


@pytest.mark.parametrize("make", ["nothing", "a file", "an empty folder", "a folder of other things"])
def test_no_engine_names_the_command_that_makes_one(tmp_path: Path, make: str) -> None:
    path = tmp_path / "engine"
    if make == "a file":
        path.write_text("not a folder")
    elif make != "nothing":
        path.mkdir()
    if make == "a folder of other things":
        (path / "weights.safetensors").write_bytes(b"1")
    with pytest.raises(EngineNotFoundError, match="featinv-export --ckpt FILE --out DIR"):
        open_engine(path)
    with pytest.raises(FileNotFoundError):
        open_engine(path)


def test_what_cannot_be_a_path_is_refused() -> None:
    with pytest.raises(ArgumentError, match="not a path"):
        open_engine("engine\0")


def test_reading_needs_the_standard_library_only() -> None:
    command = "import sys, featinv_fast.engine; print({'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_c1_a_changed_byte(engine: Path, name: str, position: float) -> None:
    flip(engine / name, round(position * ((engine / name).stat().st_size - 1)))
    refuses(engine, name)


def test_c1_any_byte_of_the_manifest_and_its_checksum(engine: Path) -> None:
    for name, step in (("manifest.json", 23), ("manifest.json.sha256", 1)):
        for offset in range(0, (engine / name).stat().st_size, step):
            flip(engine / name, offset)
            refuses(engine, name)
            flip(engine / name, offset)
    assert open_engine(engine).manifest.name == "old"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 1, -1])
def test_c1_a_truncated_file(engine: Path, name: str, size: int) -> None:
    content = (engine / name).read_bytes()
    (engine / name).write_bytes(content[:size])
    refuses(engine, name)


@pytest.mark.parametrize("name", [*NAMES, "empty.bin"])
@pytest.mark.parametrize("tail", [b"\0", b"\n", b" " * 5000])
def test_c1_a_longer_file(engine: Path, name: str, tail: bytes) -> None:
    with (engine / name).open("ab") as file:
        file.write(tail)
    refuses(engine, name)


@pytest.mark.parametrize("name", [*NAMES, "empty.bin"])
def test_c1_a_missing_file(engine: Path, name: str) -> None:
    (engine / name).unlink()
    refuses(engine, name)


@pytest.mark.parametrize("name", ["extra.onnx", ".hidden", "manifest.json.bak", "weights.safetensors~"])
def test_c1_an_extra_file(engine: Path, name: str) -> None:
    (engine / name).write_bytes(b"1")
    refuses(engine, name)


def test_c1_an_extra_folder(engine: Path) -> None:
    (engine / "nested").mkdir()
    refuses(engine, "nested")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("manifest.json")])
@pytest.mark.parametrize("damage", ["changed", "longer", "missing"])
def test_c1_a_file_that_changes_after_the_engine_was_opened(engine: Path, name: str, damage: str) -> None:
    opened = open_engine(engine)
    opened.require_unchanged(*opened.manifest.files)
    if damage == "changed":
        flip(engine / name, 0)
    elif damage == "longer":
        (engine / name).write_bytes((engine / name).read_bytes() + b"1")
    else:
        (engine / name).unlink()
    opened.require_unchanged(*(opened.manifest.files.keys() - {name}))
    with pytest.raises(EngineIntegrityError, match=re.escape(name)):
        opened.require_unchanged(name)


def test_c1_two_files_exchanged(engine: Path) -> None:
    (engine / "README.md").write_bytes(b"a graph")
    (engine / "denoiser.onnx").write_bytes(b"# An engine\n")
    refuses(engine, "denoiser.onnx")
    refuses(engine, "README.md")


def test_c1_an_absurdly_large_manifest_is_not_read(engine: Path) -> None:
    with (engine / "manifest.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no space
    refuses(engine, "manifest.json")


@pytest.mark.parametrize("name", NAMES)
def test_c1_an_unreadable_file(engine: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions cannot be tested with modes alone: root reads everything."""
    original = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EngineIntegrityError, match=f"Permission denied.*{re.escape(name)}"):
        open_engine(engine)


@pytest.mark.parametrize("name", NAMES)
def test_c2_a_symbolic_link(engine: Path, tmp_path: Path, name: str) -> None:
    (engine / name).rename(tmp_path / "elsewhere")
    (engine / name).symlink_to(tmp_path / "elsewhere")
    refuses(engine, f"{name} is a symbolic link")


@pytest.mark.parametrize("name", NAMES)
def test_c2_a_dangling_symbolic_link(engine: Path, name: str) -> None:
    (engine / name).unlink()
    (engine / name).symlink_to("nowhere")
    refuses(engine, f"{name} is a symbolic link")


@pytest.mark.parametrize("name", NAMES)
def test_c2_a_hard_link(engine: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").hardlink_to(engine / name)
    refuses(engine, f"{name} is a hard link")
    (tmp_path / "elsewhere").unlink()
    assert open_engine(engine).manifest.name == "old"


@pytest.mark.parametrize("name", NAMES)
def test_c2_a_folder_in_a_files_place(engine: Path, name: str) -> None:
    (engine / name).unlink()
    (engine / name).mkdir()
    refuses(engine, f"{name} is not a regular file")


@pytest.mark.parametrize("name", NAMES)
def test_c2_a_pipe_is_not_waited_for(engine: Path, name: str) -> None:
    (engine / name).unlink()
    os.mkfifo(engine / name)
    refuses(engine, f"{name} is not a regular file")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        ".",
        "",
        "nested/weights.safetensors",
        "nested\\weights.safetensors",
        "/etc/hostname",
        "C:weights",
        ".hidden",
        "new\nline",
        "weights.safetensors\n",
        "manifest.json",
        "manifest.json.sha256",
        "ümlaut",
    ],
)
def test_c2_names_that_lead_elsewhere(engine: Path, name: str) -> None:
    secret = engine.parent / "secret"
    secret.write_bytes(b"1")
    (engine / "nested").mkdir()
    (engine / "nested" / "weights.safetensors").write_bytes(b"1")
    data = json.loads((engine / "manifest.json").read_bytes())
    data["files"][name] = {"sha256": hashlib.sha256(b"1").hexdigest(), "size": 1}
    rewrite_manifest(engine, json.dumps(data).encode())
    refuses(engine, f"{name!r} is not the name of a plain file")


def test_c7_an_engine_of_a_newer_format(engine: Path) -> None:
    data = json.loads((engine / "manifest.json").read_bytes()) | {"format_version": 4}
    rewrite_manifest(engine, json.dumps(data).encode())
    with pytest.raises(EngineFormatError, match=r"format version 4\n  expected: format version 3"):
        open_engine(engine)


def test_a_copied_engine_opens(engine: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(engine, tmp_path / "copy of it")
    assert isinstance(open_engine(copy), EngineFolder)


@pytest.mark.parametrize("name", [".small.4711-0123abcd.featinv-partial", ".small.featinv-previous"])
def test_b9_leftovers_are_no_engines_even_if_complete(engine: Path, name: str) -> None:
    leftover = engine.rename(engine.with_name(name))
    with pytest.raises(EngineNotFoundError, match="left by an interrupted export"):
        open_engine(leftover)


def test_b9_an_interrupted_replacement_says_where_the_old_engine_is(engine: Path) -> None:
    previous = engine.rename(engine.with_name(".small.featinv-previous"))
    with pytest.raises(EngineNotFoundError, match=re.escape(str(previous))):
        open_engine(engine)
