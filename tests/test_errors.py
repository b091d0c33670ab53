"""The error family's messages."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from featinv_fast.errors import ArgumentError

ROOT = Path(__file__).parents[1]
# Restores errors of an earlier run from their whole messages, remedies and all.
WHOLE_MESSAGES = "featinv_fast/commands/remembered.py"


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


def _without_remedy(tree: ast.AST, names: set[str]) -> list[int]:
    """Lines on which one of `names` is called, and no remedy given."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]
    given = [{keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} for call in calls]
    return [call.lineno for call, named in zip(calls, given, strict=True) if named.get("remedy", "None") == "None"]


def test_every_error_is_made_with_a_remedy():
    modules = {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("featinv_fast", "export", "kernels")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    classes = [node for module in modules.values() for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    family = {"FeatInvError", "KernelError"}
    while more := {cls.name for cls in classes if family & {ast.unparse(base) for base in cls.bases}} - family:
        family |= more
    assert len(family) > 35
    # A class that is told no remedy gives its own.
    own = {
        cls.name: part
        for cls in classes
        for part in cls.body
        if cls.name in family and isinstance(part, ast.FunctionDef) and part.name == "__init__"
        if "remedy" not in {argument.arg for argument in part.args.kwonlyargs}
    }
    missing = [name for name, made in own.items() if _without_remedy(made, {"super().__init__"})]
    for path, module in modules.items():
        if path != WHOLE_MESSAGES:
            missing += [f"{path}:{line}" for line in _without_remedy(module, family - set(own))]
    assert not missing
