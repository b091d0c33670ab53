"""What both programs do around their work: messages, exit codes, streams that somebody closed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featinv_export.cli import main as export_main
from featinv_fast.cli import main
from featinv_fast.cli.program import Parser, run_program
from featinv_fast.errors import (
    BackendUnavailableError,
    CheckpointCorruptError,
    EngineNotFoundError,
    FeatInvError,
    OutputExistsError,
    UnreadableFileError,
)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (CheckpointCorruptError("the file is cut off"), 1, "the file is cut off"),
        (UnreadableFileError("this image cannot be read"), 1, "this image cannot be read"),
        (EngineNotFoundError("there is no engine here"), 2, "there is no engine here"),
        (OutputExistsError("it exists", remedy="force=True", command_remedy="pass --force"), 2, "remedy: pass --force"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 1, "remedy: check its owner"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
        (MemoryError(), 1, "memory ran out"),
        (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("interrupted: 4 of 64 images are in out"), 130, "4 of 64"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_whatever_ends_the_work_has_a_code_and_a_message(error, code, says, capsys):
    def work() -> int:
        raise error

    assert run_program("featinv", work) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert says in output.err
    assert "Errno" not in output.err
    assert bool(output.err) == (code != 141)


def test_our_own_bugs_are_not_hidden():
    def work() -> int:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError):
        run_program("featinv", work)


def test_reasons_against_are_not_what_is_expected():
    error = BackendUnavailableError("no", reasons={"torch": [], "tensorrt": ["no GPU"]}, remedy="see doctor")
    assert str(error).splitlines() == [
        "no",
        "  expected: torch",
        "  reasons against: tensorrt: no GPU",
        "  remedy: see doctor",
    ]


def test_an_error_takes_the_name_that_its_item_has_in_the_whole_run():
    error = FeatInvError("holds NaN", subject="feature map 2")
    assert str(error.about("cats/1.png")) == "cats/1.png holds NaN"
    assert str(error) == "feature map 2 holds NaN"


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["invert", "--step", "2"], "--steps"),
        (["invert", "--feature=maps.npy", "--out", "x"], "--features"),
        (["eval", "--image", "photos"], "--images"),
        (["train", "--conf", "recipe.toml"], "--config"),
        (["demo", "--counts", "3"], "--count"),
        (["bench", "--batch-size", "8"], "--batch-sizes"),
        (["convert", "a", "b", "--forc"], "--force"),
        (["doctor", "--jsn"], "--json"),
        (["--verbos", "doctor"], "--verbose"),
    ],
)
def test_options_have_whole_names_and_the_nearest_is_offered(arguments, near, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert f"did you mean {near}?" in capsys.readouterr().err


def test_the_exporter_offers_the_nearest_option(capsys):
    with pytest.raises(SystemExit) as caught:
        export_main(["--ckpt", "x", "--max-batc", "8"])
    assert caught.value.code == 2
    assert "did you mean --max-batch?" in capsys.readouterr().err


def test_values_that_look_like_options_follow_two_dashes():
    parser = Parser()
    parser.add_argument("source")
    assert parser.parse_args(["--", "--odd"]).source == "--odd"


def _featinv(code: str, **streams) -> subprocess.CompletedProcess[bytes]:
    """A process in which the command line does `code`, which may print."""
    program = f"""if True:
        import sys
        from featinv_fast.cli.program import run_program
        sys.exit(run_program("featinv", lambda: {code}))"""
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, timeout=60, check=False, **streams)


def test_a_reader_that_leaves_ends_the_program_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    done = _featinv("print('x' * 100_000) or 0", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_behind_stdout_is_a_failure():
    with Path("/dev/full").open("wb") as full:
        done = _featinv("print('x') or 0", stdout=full)
    assert done.returncode == 1
    assert b"the disk is full" in done.stderr
    assert b"Errno" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="this system inherits no closed streams")
def test_a_closed_stdout_gives_no_file_its_number():
    code = "print(open('/dev/null').fileno(), file=sys.stderr) or print('x') or 0"
    done = _featinv(code, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0
    assert int(done.stderr) > 2


def test_names_that_the_terminal_cannot_show_are_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = _featinv("print('caf\\xe9\\udce9') or 0", stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stdout) == (0, b"caf\\xe9\\udce9\n")
