"""A module `tensorrt` that has exactly what the described bindings have, and records what is done with it.

An unknown attribute, argument or type fails as it does with pybind11; a known call that the simulation does not
play is a failure of the test.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from typing import Any

Call = tuple[str, dict[str, Any]]
# Names that the bindings' docstrings use for classes they export under another name.
OTHER_NAMES = {"IParserError": "ParserError"}


class Member:
    """A member of an enum: it has a name, equals itself and converts to its number."""

    def __init__(self, name: str, value: int) -> None:
        self.name = name
        self.value = value

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class Object:
    """An instance of a described class."""

    _class: str
    _recorder: Recorder

    def __init__(self, *arguments: Any, **named: Any) -> None:
        recorder, constructors = self._recorder, self._recorder.classes[self._class]["constructors"]
        if not constructors:
            raise TypeError(f"{self._class}: No constructor defined!")
        bound = recorder.bind(f"{self._class}.__init__", constructors, (self, *arguments), named)
        recorder.play(f"{self._class}.__init__", self, bound, "None")
        self.__dict__["_made"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        # Python subclasses of bound classes have a dictionary of their own, bound classes have none.
        if "_class" not in vars(type(self)) or isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
        else:
            raise AttributeError(f"{self._class!r} object has no attribute {name!r}", name=name, obj=self)


class Recorder:
    """Makes the module and keeps the calls.

    Args:
        description: what `describe_bindings.py` wrote.
        plays: "Class.method" -> what it does: gets the object and the arguments by name.

    Attributes:
        calls: (name, arguments) of every call and assignment.
        module: to be put in place of `tensorrt`.
    """

    def __init__(self, description: Mapping[str, Any], plays: Mapping[str, Callable[..., Any]]) -> None:
        self.classes = description["classes"]
        self.plays = dict(plays)
        self.calls: list[Call] = []
        self.types: dict[str, type] = {}
        for name in self.classes:
            self._class(name)
        self.module = types.ModuleType("tensorrt")
        self.module.__version__ = description["version"]
        for name, cls in self.types.items():
            owner, _, inner = name.rpartition(".")
            setattr(self.types[owner] if owner else self.module, inner, cls)
        unknown = [name for name in self.plays if not self._is_known(name)]
        assert not unknown, f"the simulation plays what {description['version']} does not have: {unknown}"

    def make(self, name: str, **state: Any) -> Any:
        """An object that only TensorRT can make; `state` is for the simulation."""
        assert not any(hasattr(self.types[name], attribute) for attribute in state), f"{name} has {set(state)} itself"
        made = object.__new__(self.types[name])
        made.__dict__.update(state, _made=True)
        return made

    def arguments(self, name: str) -> list[dict[str, Any]]:
        """The arguments of every call of `name`, in order."""
        return [arguments for called, arguments in self.calls if called == name]

    def bind(self, name: str, signatures: list[dict[str, str]], given: tuple, named: Mapping[str, Any]) -> dict:
        """Arguments by name, as the first signature that accepts them has them."""
        for signature in signatures:
            parameters = parse(signature["parameters"])
            if len(given) > len(parameters) or not set(named) <= {parameter for parameter, _, _ in parameters}:
                continue
            bound = dict(zip((parameter for parameter, _, _ in parameters), given, strict=False))
            if set(bound) & set(named):
                continue
            bound |= named
            rest = [parameter for parameter, _, default in parameters if parameter not in bound and default is None]
            bound.pop("self")
            if not rest and all(self.fits(bound[p], kind, default) for p, kind, default in parameters if p in bound):
                return bound
        texts = [signature["parameters"] for signature in signatures]
        raise TypeError(f"{name}(): incompatible function arguments {given[1:]} {named}; supported: {texts}")

    def fits(self, value: Any, kind: str, default: str | None = None) -> bool:
        """Whether pybind11 converts `value` to the type that a signature names."""
        kind = plain(kind)
        if kind == "object":
            return True
        if kind == "typing.SupportsInt":
            return hasattr(value, "__int__") and not isinstance(value, float | str)
        if kind in ("typing_extensions.Buffer", "collections.abc.Buffer"):  # before and since Python 3.12
            return isinstance(value, bytes | bytearray | memoryview)
        if kind in ("bool", "int", "str", "list", "tuple", "float"):
            exact = {"bool": bool, "int": int, "str": str, "list": list, "tuple": tuple, "float": float}[kind]
            return type(value) is exact or (value is None and default == "None")
        if kind == "Dims":
            return isinstance(value, tuple | list) and all(type(size) is int for size in value)
        if match := re.fullmatch(r"(?:list|collections\.abc\.Sequence)\[(.+)\]", kind):
            return isinstance(value, list | tuple) and all(self.fits(item, match[1]) for item in value)
        assert kind in self.types, f"teach the double the type {kind!r}"
        if not isinstance(value, self.types[kind]):
            return value is None and default == "None"
        # An object whose class forgot to call the constructor it inherits is refused.
        return isinstance(value, Member) or "_made" in value.__dict__

    def play(self, name: str, this: Any, arguments: dict[str, Any], returns: str) -> Any:
        """Record a call and let the simulation answer it."""
        self.calls.append((name, arguments))
        if name not in self.plays:
            assert name.endswith(".__init__"), f"the simulation does not play {name}"
            return None
        result = self.plays[name](this, **arguments)
        # Null pointers arrive as None.
        pointer = plain(returns) in self.types
        nothing = result is None and (pointer or returns == "None")
        assert nothing or self.fits(result, returns), (name, result, returns)
        return result

    def _is_known(self, name: str) -> bool:
        cls, _, member = name.rpartition(".")
        described = self.classes.get(cls, {})
        return any(member in described.get(kind, ()) for kind in ("methods", "properties")) or member == "__init__"

    def _class(self, name: str) -> type:
        if name in self.types:
            return self.types[name]
        described = self.classes[name]
        if "enum" in described:
            cls = type(name.rpartition(".")[2], (Member,), {})
            for member, value in described["enum"].items():
                setattr(cls, member, cls(member, value))
        else:
            bases = tuple(self._class(base) for base in described["bases"][:1]) or (Object,)
            inherited = {attribute for base in bases for attribute in dir(base)}
            methods = {m: self._method(name, m) for m in described["methods"] if m not in inherited}
            properties = {p: self._property(name, p) for p in described["properties"] if p not in inherited}
            cls = type(name, bases, {"_class": name, "_recorder": self, **methods, **properties})
        self.types[name] = cls
        return cls

    def _method(self, cls: str, method: str) -> Callable[..., Any]:
        name, signatures = f"{cls}.{method}", self.classes[cls]["methods"][method]

        def call(this: Any, *given: Any, **named: Any) -> Any:
            bound = self.bind(name, signatures, (this, *given), named)
            return self.play(name, this, bound, signatures[0]["returns"])

        return call

    def _property(self, cls: str, attribute: str) -> property:
        name, described = f"{cls}.{attribute}", self.classes[cls]["properties"][attribute]

        def get(this: Any) -> Any:
            if name in self.plays:
                return self.play(name, this, {}, described["type"])
            return this.__dict__[name]

        def put(this: Any, value: Any) -> None:
            kind = {"int": "typing.SupportsInt"}.get(described["type"], described["type"])
            if not self.fits(value, kind):
                raise TypeError(f"{name} = {value!r}: expected {described['type']}")
            self.calls.append((f"{name}=", {"value": value}))
            this.__dict__[name] = value

        return property(get, put if described["writable"] else None)


def parse(parameters: str) -> list[tuple[str, str, str | None]]:
    """Name, type and default of each parameter of a signature."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(parameters):
        depth += {"[": 1, "<": 1, "(": 1, "]": -1, ">": -1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append(parameters[start:place])
            start = place + 1
    parts.append(parameters[start:])
    result = []
    for part in parts:
        name, _, rest = part.strip().partition(": ")
        kind, _, default = rest.partition(" = ")
        result.append((name, kind, default or None))
    return result


def plain(kind: str) -> str:
    """A type without the names of the spaces it lives in."""
    spaces = r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.|nvinfer1::(v_1_0::)?|nvonnxparser::"
    kind = re.sub(spaces, "", kind)
    return OTHER_NAMES.get(kind, kind)
