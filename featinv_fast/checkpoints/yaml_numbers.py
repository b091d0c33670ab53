"""The numbers in a configuration of the latent-diffusion code base, `model: params:` of a YAML file.

The classes that such a file names are never looked up: the text is parsed into nodes, and no node is turned into an
object.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from featinv_fast.errors import CheckpointCorruptError, MissingPackageError

LARGEST_YAML = 100_000  # bytes; published ones have 2,000


def read_model_params(path: Path) -> dict[str, Any]:
    """The scalars below `model: params:`, numbers and truth values as such.

    Raises:
        OSError: the system refuses.
        CheckpointCorruptError: it is no YAML, or absurdly large.
        MissingPackageError: PyYAML is not installed.
    """
    reason = f"more than {LARGEST_YAML} bytes"
    if path.stat().st_size <= LARGEST_YAML:
        yaml = _yaml(path)
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            return {
                key.value: _plain(value)
                for key, value in _entries(_entry(_entry(node, "model"), "params"))
                if hasattr(key, "value") and isinstance(key.value, str) and isinstance(value.value, str)
            }
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise CheckpointCorruptError(
        f"{path.name} is damaged: {reason}",
        given=path,
        expected="the configuration of the checkpoint beside it",
        remedy="copy it again, or move it away: what it does not say is taken to be as in Stable Diffusion 1",
    )


def _entries(node: Any) -> list[tuple[Any, Any]]:
    return node.value if getattr(node, "id", None) == "mapping" else []


def _entry(node: Any, name: str) -> Any:
    return next((value for key, value in _entries(node) if key.value == name), None)


def _plain(node: Any) -> Any:
    kind = node.tag.rpartition(":")[2]
    try:
        if kind in {"int", "float"}:
            return float(node.value.replace("_", ""))
    except ValueError:
        return node.value
    return {"bool": node.value.lower() in {"true", "yes", "on"}, "null": None}.get(kind, node.value)


def _yaml(path: Path) -> Any:
    try:
        return importlib.import_module("yaml")
    except ImportError as error:
        raise MissingPackageError(
            "the configuration beside the checkpoint needs PyYAML to be read",
            given=path,
            expected="PyYAML, or no such file",
            remedy="pip install pyyaml",
        ) from error
