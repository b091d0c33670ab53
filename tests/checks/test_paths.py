"""Inputs are there, outputs can be written, and what the system refuses is said in words."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from pathlib import Path

import pytest

from featinv_fast.checks import (
    as_path,
    file_error,
    file_errors,
    output_folder,
    refuse_existing,
    refuse_inputs,
    require_input,
    require_writable,
)
from featinv_fast.checks.system_errors import MEANINGS
from featinv_fast.errors import (
    ArgumentError,
    ArgumentTypeError,
    EngineNotFoundError,
    ExitCode,
    FileError,
    InputNotFoundError,
    OutputExistsError,
)


@pytest.mark.parametrize("name", ["ENOENT", "EEXIST", "EACCES", "EROFS", "ENOSPC", "EISDIR", "ENOTDIR", "ENAMETOOLONG"])
def test_what_the_system_refuses_is_said_with_a_remedy(tmp_path: Path, name: str):
    number = getattr(errno, name)
    with pytest.raises(FileError) as caught, file_errors(tmp_path / "maps.npy"):
        raise OSError(number, os.strerror(number), str(tmp_path / "other"))
    error = caught.value
    assert (error.errno, error.filename) == (number, str(tmp_path / "other"))
    assert (error.problem, error.expected, error.remedy) == MEANINGS[name]
    assert "Errno" not in str(error)
    assert isinstance(error, OSError)
    assert error.exit_code == ExitCode.FAILED
    assert (copy.copy(error).errno, pickle.loads(pickle.dumps(error)).errno) == (number, number)


def test_errors_without_a_name_or_a_known_number_are_said_too(tmp_path: Path):
    full = file_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "out.png")
    assert (full.problem, full.given) == ("the disk is full", tmp_path / "out.png")
    unknown = file_error(OSError("the tape is torn"), tmp_path)
    assert "the tape is torn" in unknown.problem
    assert None not in (unknown.given, unknown.expected, unknown.remedy)
    assert file_error(OSError(errno.ENOENT, "No such file", b"caf\xe9")).filename == "caf\udce9"


def test_our_own_errors_and_broken_pipes_pass():
    for error in (EngineNotFoundError("there is no engine here"), BrokenPipeError(errno.EPIPE, "Broken pipe")):
        with pytest.raises(type(error)), file_errors():
            raise error


@pytest.mark.parametrize("path", ["", "maps\0.npy", "maps\ud800.npy"])
def test_what_no_path_can_be_is_refused(path: str):
    with pytest.raises(ArgumentError, match="is not a path"):
        as_path(path)


def test_what_is_no_text_is_no_path():
    for path in (7, b"maps.npy", None):
        with pytest.raises(ArgumentTypeError, match="is not a path"):
            as_path(path)  # type: ignore[arg-type]


def test_inputs_are_there_and_of_their_kind(tmp_path: Path):
    file = tmp_path / "maps.npy"
    file.touch()
    assert require_input(file, "file") == require_input(str(file)) == file
    assert require_input(tmp_path, "folder") == tmp_path
    for path, kind, says in (
        (tmp_path / "none", "file", "there is no such file"),
        (tmp_path, "file", "this is not a file"),
        (file, "folder", "this is not a folder"),
        (file / "below", "file", "there is no such file"),
    ):
        with pytest.raises(InputNotFoundError, match=says) as caught:
            require_input(path, kind)
        assert caught.value.exit_code == ExitCode.USAGE
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputNotFoundError, match="mend the symbolic link"):
        require_input(tmp_path / "loop")
    with pytest.raises(FileError, match="too long"):
        require_input(tmp_path / ("x" * 300))


def test_outputs_that_exist_are_replaced_by_force_alone(tmp_path: Path):
    file = tmp_path / "out.png"
    assert refuse_existing(file, force=False) == file
    file.touch()
    with pytest.raises(OutputExistsError) as caught:
        refuse_existing(file, force=False, what="picture")
    error = caught.value
    assert "the picture is there already" in str(error)
    assert "force=True" in error.message()
    assert "--force" not in error.message()
    assert "--force" in error.message(command_line=True)
    assert "force=True" not in error.message(command_line=True)
    assert error.exit_code == ExitCode.USAGE
    assert refuse_existing(file, force=True) == file
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(OutputExistsError):
        refuse_existing(tmp_path / "gone", force=False)
    with pytest.raises(FileError, match="this is a folder"):
        refuse_existing(tmp_path, force=True)


def test_places_where_nothing_can_be_made_are_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    assert require_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileError, match="not a folder"):
        require_writable(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(FileError, match="no permission"):
        require_writable(tmp_path / "out")


def test_a_failure_leaves_no_empty_folder(tmp_path: Path):

    def interrupted() -> None:
        with output_folder(tmp_path / "a" / "b") as folder:
            assert folder.is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileError, match="too long"), output_folder(tmp_path / "a" / ("x" * 300)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there_and_what_was_written(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="stop"), output_folder(tmp_path / "mine"):
        raise ValueError("stop")
    assert (tmp_path / "mine").is_dir()

    def fails_late() -> None:
        with output_folder(tmp_path / "new" / "deep") as folder:
            (folder.parent / "image.png").touch()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fails_late()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["image.png"]


def test_a_folder_cannot_be_made_of_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(FileError) as caught, output_folder(path):
            pass
        assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("output", ["in/a", "in/b/../a", "link", "hard", "in", "linked/c", "in/new/deep"])
def test_an_output_that_is_or_lies_in_an_input_is_refused(tmp_path: Path, output: str):
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in" / "a")
    (tmp_path / "hard").hardlink_to(tmp_path / "in" / "a")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    inputs = {"the file": tmp_path / "in" / "a", "the folder": tmp_path / "in", "nothing": None}
    with pytest.raises(OutputExistsError, match=r"the result is or lies in an input, the (file|folder)"):
        refuse_inputs({"the result": tmp_path / output}, inputs)


def test_an_output_may_lie_beside_an_input_and_around_one_that_stays(tmp_path: Path):
    (tmp_path / "in").mkdir()
    refuse_inputs({"the result": tmp_path / "in2"}, {"the folder": tmp_path / "in"})
    refuse_inputs({"the result": tmp_path}, {"the folder": tmp_path / "in"})
    with pytest.raises(OutputExistsError, match="is or holds an input"):
        refuse_inputs({"the result": tmp_path}, {"the folder": tmp_path / "in"}, replaced=True)
