"""Where the vendor's bindings come from: README's test command. Without them it is said that nothing was checked."""

from __future__ import annotations

from pathlib import Path

import bindings
import pytest
import separate_packages

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fetched(tmp_path, monkeypatch) -> Path:
    """Where both releases seem to have been fetched."""
    monkeypatch.setattr(separate_packages, "ROOT", tmp_path)
    for release in bindings.RELEASES:
        name = f"tensorrt-{release}"
        (tmp_path / name).mkdir()
        (tmp_path / name / separate_packages.COMPLETE).write_text("\n".join([*separate_packages.SETS[name], ""]))
    return tmp_path


def test_both_releases_are_taken(fetched):
    assert bindings.missing() is None


@pytest.mark.parametrize("release", bindings.RELEASES)
@pytest.mark.parametrize("note", [None, "", "tensorrt-cu13-bindings==10.0.0\n"])
def test_a_release_that_was_not_fetched_whole_is_named_with_the_command(fetched, release, note):
    path = fetched / f"tensorrt-{release}" / separate_packages.COMPLETE
    path.unlink() if note is None else path.write_text(note)
    reason = bindings.missing()
    assert reason.startswith("NOTHING ABOUT TENSORRT WAS CHECKED")
    assert f"tensorrt-{release}" in reason
    assert reason.endswith("python tests/tools/separate_packages.py")


def test_a_machine_without_a_compiler_is_an_error(fetched, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(AssertionError, match="no-such-compiler"):
        bindings.missing()


def test_the_readmes_test_command_fetches_them_before_the_tests():
    _, _, command = (ROOT / "README.md").read_text().partition("<!-- test -->")
    before, _, _ = command.partition("pytest -n 2")
    assert "python tests/tools/separate_packages.py &&" in before
