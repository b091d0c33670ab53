"""Where the vendor's bindings come from: who names a folder gets these tests run, and never skipped in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import bindings
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with both releases, as the tests look for it."""
    for release in bindings.RELEASES:
        (tmp_path / release / "tensorrt_bindings").mkdir(parents=True)
    monkeypatch.setenv(bindings.VARIABLE, str(tmp_path))
    return tmp_path


def test_without_a_folder_the_reason_says_how_to_make_one(monkeypatch):
    monkeypatch.delenv(bindings.VARIABLE, raising=False)
    reason = bindings.missing()
    assert reason.startswith("NOTHING ABOUT TENSORRT WAS CHECKED")
    assert f"{' and '.join(bindings.RELEASES)}: pip install --no-deps --target DIR/R" in reason


def test_a_folder_with_both_releases_is_taken(folder):
    assert bindings.missing() is None


@pytest.mark.parametrize("release", bindings.RELEASES)
def test_a_release_that_is_not_in_the_named_folder_is_an_error(folder, release):
    shutil.rmtree(folder / release)
    with pytest.raises(AssertionError, match=release):
        bindings.missing()


def test_an_empty_variable_is_no_folder_but_an_error(folder, monkeypatch):
    monkeypatch.setenv(bindings.VARIABLE, "")
    with pytest.raises(AssertionError, match=r"has no tensorrt_bindings"):
        bindings.missing()


def test_a_machine_without_a_compiler_is_an_error(folder, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(AssertionError, match="no-such-compiler"):
        bindings.missing()


def test_ci_installs_both_releases_before_the_tests():
    script = (ROOT / ".ci" / "run").read_text()
    installed, _, rest = script.partition('bash -euo pipefail -c "$test_command"')
    assert rest
    assert f'export {bindings.VARIABLE}="' in installed
    assert f"for release in {' '.join(bindings.RELEASES)}; do" in installed
