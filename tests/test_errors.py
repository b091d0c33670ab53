"""The error family's messages."""

from __future__ import annotations

import pytest

from featinv_fast.errors import ArgumentError


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (10**5000, "int with thousands of digits"),
        ([10**5000], "list with thousands of digits"),
        ("x" * 10**6, "(1,000,000 characters)"),
        ("a\ud800b", "a\\ud800b"),
    ],
    ids=["digits", "digits in a list", "length", "surrogate"],
)
def test_whatever_was_given_a_message_can_be_read_and_printed(given, shown):
    message = str(ArgumentError("no", given=given, expected="another", remedy="give another"))
    assert shown in message
    assert len(message.encode()) < 5000
    assert message.endswith("remedy: give another")
