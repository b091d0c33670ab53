"""The ledger: what is not in it was not done, and what is in it stays."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featinv_fast.errors import FileError, LedgerError, LockedError, OutputExistsError
from featinv_fast.jobs import ledger as module
from featinv_fast.jobs.ledger import LEDGER, differences, open_ledger, read_job

IDENTITY = {"engine": {"sha256": "1"}, "steps": 50}


def opened(folder: Path, identity=IDENTITY, **options):
    return open_ledger(folder, identity, work="test", remedy="begin elsewhere", **options)


def done(folder: Path, *rows: dict, files=("a.png", "b.png")) -> None:
    """A job that wrote its files and entered its rows."""
    with opened(folder) as ledger:
        ledger.claim(files)
        for name in files:
            ledger.write(name, lambda file: file.write(b"ours"))
        ledger.enter(rows or ({"n": 1},))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_and_files_are_found_again(tmp_path):
    done(tmp_path / "new" / "job", {"n": 1}, {"n": 2})
    with opened(tmp_path / "new" / "job") as ledger:
        assert (ledger.rows, ledger.files) == ([{"n": 1}, {"n": 2}], {"a.png", "b.png"})
        ledger.enter([{"n": 3}])
    assert names(tmp_path / "new" / "job") == ["a.png", "b.png", LEDGER]
    with opened(tmp_path / "new" / "job") as ledger:
        assert [row["n"] for row in ledger.rows] == [1, 2, 3]


def test_wherever_the_last_line_is_torn_the_rows_before_it_count(tmp_path):
    done(tmp_path, {"n": 1}, {"n": 2})
    content = (tmp_path / LEDGER).read_bytes()
    ends = [end for end in range(len(content)) if content[end : end + 1] == b"\n"]
    for cut in range(len(content)):
        (tmp_path / LEDGER).write_bytes(content[:cut])
        whole = sum(end < cut for end in ends)
        if whole < 2:  # nothing says that these are the job's own
            with opened(tmp_path) as ledger:
                assert ledger.rows == []
            continue
        with opened(tmp_path) as ledger:
            assert len(ledger.rows) == max(0, whole - 2)
            ledger.enter([{"n": 9}])
        with opened(tmp_path) as ledger:
            assert ledger.rows[-1] == {"n": 9}


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[1]\n", b"not json\n", b'{"files": ["../x"]}\n', b'{"files": ["/etc/x"]}\n']
)
def test_a_damaged_ledger_is_named_with_its_line(tmp_path, line):
    done(tmp_path)
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(line + b'{"done": {}}\n')
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(LedgerError, match=rf"{LEDGER}, line 4"), opened(tmp_path, restart=True):
        pass
    assert (tmp_path / LEDGER).read_bytes() == before
    assert names(tmp_path) == ["a.png", "b.png", LEDGER]


def test_another_identity_is_refused_by_what_differs(tmp_path):
    done(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    other = {"engine": {"sha256": "2"}, "steps": 50, "seed": 1}
    differs = r"engine.sha256: '2'; seed: 1(.|\n)*engine.sha256: '1'; seed: None"
    with pytest.raises(OutputExistsError, match=differs), opened(tmp_path, other):
        pass
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert differences({"a": [1], "b": {"c": 1}}, {"a": [2], "b": {"c": 1, "d": 2}}) == [
        ("a", [1], [2]),
        ("b.d", None, 2),
    ]


def test_beginning_anew_removes_what_the_job_wrote_and_nothing_else(tmp_path):
    (tmp_path / "own.png").write_bytes(b"the user's")
    (tmp_path / ".0123456789abcdef.other").write_bytes(b"the user's")
    done(tmp_path)
    with opened(tmp_path, {"another": "job"}, restart=True) as ledger:
        assert (ledger.rows, ledger.files) == ([], set())
        ledger.claim(["a.png"])
        ledger.write("a.png", lambda file: file.write(b"new"))
        ledger.enter([{"n": 1}])
    assert names(tmp_path) == [".0123456789abcdef.other", "a.png", LEDGER, "own.png"]
    assert (tmp_path / "a.png").read_bytes() == b"new"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("own", ["a.png", "A.PNG"])
def test_what_the_job_did_not_write_is_in_the_way(tmp_path, own, restart):
    (tmp_path / own).write_bytes(b"the user's")
    with pytest.raises(OutputExistsError, match=r"a\.png"), opened(tmp_path, restart=restart) as ledger:
        ledger.claim(["b.png", "a.png"])
    assert names(tmp_path) == [own]
    assert (tmp_path / own).read_bytes() == b"the user's"


def test_a_job_that_does_nothing_leaves_nothing(tmp_path):
    def fail(error):
        with opened(tmp_path / "a" / "b") as ledger:
            ledger.claim(["x.png"])
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert names(tmp_path) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="x"), opened(tmp_path / "there"):
        raise ValueError("x")
    assert names(tmp_path / "there") == []
    # What was claimed and never written holds nobody up.
    with opened(tmp_path / "there", {"other": 1}) as ledger:
        ledger.claim(["x.png"])


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    done(tmp_path)

    def failing(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as ledger, pytest.raises(FileError, match="disk is full"):
        ledger.write("a.png", failing)
    assert names(tmp_path) == ["a.png", "b.png", LEDGER]
    assert (tmp_path / "a.png").read_bytes() == b"ours"


def test_an_append_that_the_disk_cuts_short_is_taken_back(tmp_path, monkeypatch):
    done(tmp_path)
    before = (tmp_path / LEDGER).read_bytes()
    write = os.write
    with opened(tmp_path) as ledger:
        monkeypatch.setattr(module.os, "write", lambda descriptor, content: write(descriptor, content[:7]))
        with pytest.raises(FileError, match="disk is full"):
            ledger.enter([{"n": 2}])
        monkeypatch.undo()
        assert (tmp_path / LEDGER).read_bytes() == before
        ledger.enter([{"n": 3}])
    with opened(tmp_path) as ledger:
        assert [row["n"] for row in ledger.rows] == [1, 3]


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom featinv_fast.jobs.ledger import open_ledger\n"
        f"with open_ledger(Path(sys.argv[1]), {IDENTITY!r}, work='test', remedy='') as ledger:\n"
        "    ledger.claim(['a.png']); ledger.write('a.png', lambda file: file.write(b'1')); ledger.enter([{'n': 1}])\n"
        "    print('ready', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        (tmp_path / ".0123456789abcdef.featinv-partial").write_bytes(b"half a picture")
        with pytest.raises(LockedError, match=f"another test (.|\n)*process {process.pid} "), opened(tmp_path):
            pass
        process.kill()
    with opened(tmp_path) as ledger:
        assert ledger.rows == [{"n": 1}]
    assert names(tmp_path) == ["a.png", LEDGER]


def test_the_identity_is_read_without_taking_the_folder(tmp_path):
    assert read_job(tmp_path / "missing") == (None, [])
    assert read_job(tmp_path) == (None, [])
    with opened(tmp_path) as ledger:
        assert read_job(tmp_path) == (None, [])  # nothing is done yet
        ledger.claim(["a.png"])
        ledger.write("a.png", lambda file: file.write(b"1"))
        ledger.enter([{"n": 1}])
        assert read_job(tmp_path) == (IDENTITY, [{"n": 1}])


def test_a_row_costs_one_line_however_many_there_are(tmp_path):
    sizes = []
    with opened(tmp_path) as ledger:
        for n in range(1000):
            ledger.enter([{"n": f"{n:04d}"}])
            sizes.append((tmp_path / LEDGER).stat().st_size)
    assert {later - sooner for sooner, later in itertools.pairwise(sizes)} == {
        len(json.dumps({"done": {"n": "0000"}}, separators=(",", ":"))) + 1
    }
