"""Names of outputs: the wished ones where every file system takes them, else safe and different ones."""

from __future__ import annotations

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featinv_fast.jobs.names import FORBIDDEN, LONGEST, RESERVED, collision_key, file_stems, readable


def stem(name: str) -> str:
    return file_stems({name: name})[name]


@pytest.mark.parametrize(
    "name", ["000000", "cats__1.jpg", "été", "写真 1", "a~b", "-rf", "COM10", "console", "x" * 120]
)
def test_harmless_names_stay(name):
    assert stem(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a:b",
            "a?b",
            "a\\b",
            "a\nb",
            "a\x7fb",
            "a\u202eb",
            "a\u200bb",
            "tail.",
            "tail ",
            " head",
            ".hidden",
            "..",
            ".",
        ),
        *("CON", "con.jpg", "Aux .txt", "lpt1", "COM¹.png", "nul"),
        *("x" * 121, "é" * 61, "写" * 85, os.fsdecode(b"caf\xe9.png"), "a" * 250 + ".png"),
    ],
)
def test_names_that_some_file_system_refuses_get_a_hash(name):
    assert "~" in stem(name)
    check(stem(name))


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=300), unique=True, max_size=30))
def test_any_names_become_different_stems_that_every_file_system_takes(names):
    stems = file_stems({name: name for name in names})
    assert list(stems) == names
    assert len({collision_key(stem) for stem in stems.values()}) == len(names)
    for one in stems.values():
        check(one)


def check(stem: str) -> None:
    content = stem.encode()  # valid text
    assert 0 < len(content) <= LONGEST
    assert not FORBIDDEN.search(stem)
    assert not RESERVED.fullmatch(stem)
    assert stem == stem.strip(" .")
    assert not set(stem) & {chr(code) for code in (*range(32), 127)}


def test_names_that_differ_in_case_or_composition_are_kept_apart():
    names = ["Cat", "cat", "CAT", "\u00e9", "e\u0301", "cats__1.png"]
    stems = file_stems({name: name for name in names})
    assert [stems[name] == name for name in names] == [True, False, False, True, False, True]
    two = file_stems({"cats/1.png": "cats__1.png", "cats__1.png": "cats__1.png"})
    assert two["cats/1.png"] == "cats__1.png"
    assert two["cats__1.png"].startswith("cats__1.png~")


def test_items_keep_the_stems_that_they_got_earlier():
    earlier = file_stems({"cat": "cat", "Cat": "Cat"})
    assert file_stems({"CAT": "CAT", "Cat": "Cat", "cat": "cat"}, earlier).items() >= earlier.items()


def test_readable_names_are_text_of_one_line():
    assert readable("写真 1.png") == "写真 1.png"
    assert readable("a\u3000b") == "a\u3000b"
    for name in (os.fsdecode(b"caf\xe9.png"), "a\nb", "\x1b[31m", "a\u2028b"):
        shown = readable(name)
        shown.encode()
        assert len(shown.splitlines()) == 1
        assert set(shown) <= set(string.printable) - set("\n\r\x0b\x0c")
