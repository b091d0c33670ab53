"""Describe the classes of TensorRT's Python bindings as JSON: run in a process that can import them.

    python describe_bindings.py [tensorrt_rtx] > description.json

Signatures are what pybind11 writes into docstrings; there is no other source of them.
"""

from __future__ import annotations

import enum
import importlib
import json
import re
import sys

NAME = sys.argv[1] if len(sys.argv) > 1 else "tensorrt"
BINDINGS = importlib.import_module(f"{NAME}_bindings" if NAME == "tensorrt" else NAME)
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> (.+)$")
PROPERTY = re.compile(r"^\((?:self|arg0): [^)]*\) -> (.+)$")


def signatures(function: object) -> list[dict[str, str]]:
    found = [SIGNATURE.match(line.strip()) for line in (function.__doc__ or "").splitlines()]
    return [{"parameters": match[2], "returns": match[3]} for match in found if match]


def describe(cls: type) -> dict[str, object]:
    members = getattr(cls, "__members__", None)
    if members is not None:
        return {"enum": {name: int(value) for name, value in members.items()}}
    result: dict[str, object] = {
        "bases": [base.__name__ for base in cls.__mro__[1:] if base.__module__.startswith(f"{NAME}_bindings")],
        "constructors": signatures(cls.__init__),
        "methods": {},
        "properties": {},
    }
    for name in dir(cls):
        value = getattr(cls, name)
        if name.startswith("_") or isinstance(value, type) or isinstance(type(value), enum.EnumMeta):
            continue
        if isinstance(value, property):
            match = PROPERTY.match((value.fget.__doc__ or "").strip().partition("\n")[0])
            result["properties"][name] = {"writable": value.fset is not None, "type": match[1] if match else "object"}
        elif callable(value):
            result["methods"][name] = signatures(value)
    return result


def main() -> None:
    classes = {}
    for name, value in vars(BINDINGS).items():
        if isinstance(value, type) and value.__module__.startswith(f"{NAME}_bindings"):
            classes[name] = describe(value)
            for inner, nested in vars(value).items():
                if isinstance(nested, type):
                    classes[f"{name}.{inner}"] = describe(nested)
    json.dump({"version": BINDINGS.__version__, "classes": classes}, sys.stdout)


main()
