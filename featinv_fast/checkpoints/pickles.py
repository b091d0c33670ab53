"""Reading what `torch.save` wrote: tensors and plain data alone, never code, and no more memory than the file has.

A pickle is a program that builds objects. torch's own restriction (`weights_only`) leaves it tensors and plain data;
what such programs can still do is claim more than there is: compressed or overlapping parts of an archive, tensors
that repeat the same bytes, tensors without data. All of that is refused.
"""

from __future__ import annotations

import mmap
import pickle  # for its exception; nothing is unpickled with it
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.checkpoints.header import is_pickle
from featinv_fast.checkpoints.listing import listed, short
from featinv_fast.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointUnsafeError

LARGEST_PROGRAM = 100_000_000  # bytes of the pickle itself, without the tensors' data
MOST_CLAIMED = 2  # times the file's size: what its tensors may take together


def read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a file of `torch.save`, and Lightning's hyper-parameters beside it, if there are any.

    The tensors may lie under `state_dict` (Lightning), beside optimizer states that are not read.

    Raises:
        OSError: the system refuses.
        CheckpointCorruptError: it is damaged, or claims more than it has.
        CheckpointUnsafeError: it holds pickled objects other than tensors and plain data.
        CheckpointMismatchError: it holds no tensors, or other things between them.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if not is_pickle(start):
        raise CheckpointCorruptError(
            f"{path.name} is {'empty' if not start else 'not a PyTorch file'}",
            given=path,
            expected="a zip archive or a pickle that torch.save wrote",
            remedy="copy the file again; if it is a safetensors file, name it so",
        )
    zipped = start.startswith(b"PK")
    if zipped:
        _check_archive(path)
    _refuse_byte_arrays(path)
    content = _load(path, zipped=zipped)
    hyper_parameters = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return _state_dict(path, content), dict(hyper_parameters) if isinstance(hyper_parameters, Mapping) else {}


def _check_archive(path: Path) -> None:
    """What torch writes is stored plainly, each part once; anything else can unfold into more than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise _damaged(path, short(error)) from error
    if any(part.filename.rpartition("/")[2] == "constants.pkl" for part in parts):
        raise _unsafe(path, "it is a TorchScript archive, a program")
    packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise _damaged(path, f"{len(packed)} parts of its archive are compressed, which torch.save does not do")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise _damaged(path, "the parts of its archive are larger than the file")
    program = max((part.file_size for part in parts if part.filename.endswith(".pkl")), default=0)
    if program > LARGEST_PROGRAM:
        raise _damaged(path, f"its pickle has {program} bytes, more than {LARGEST_PROGRAM}")


def _refuse_byte_arrays(path: Path) -> None:
    """`bytearray(n)` makes n bytes out of a number; torch allows it, no state dict has it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"cbuiltins\nbytearray") >= 0 or content.find(b"c__builtin__\nbytearray") >= 0:
            raise _unsafe(path, "GLOBAL builtins.bytearray")


def _load(path: Path, *, zipped: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about pickle protocols
            # The old format, a bare pickle, cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, str(error)) from None
    except Exception as error:  # damage shows itself in any exception
        if "TorchScript" in str(error):
            raise _unsafe(path, "it is a TorchScript archive, a program") from None
        raise _damaged(path, short(str(error).splitlines()[0]) if str(error) else type(error).__name__) from error


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    entries = list(content.items()) if isinstance(content, Mapping) else [(None, content)]
    tensors: dict[str, Tensor] = {}
    foreign = []
    for name, value in entries:
        reason = _refusal(value)
        if isinstance(name, str) and isinstance(value, Tensor) and not reason:
            tensors[name] = value.detach()
        else:
            foreign.append(f"{name if isinstance(name, str) else f'a name of type {type(name).__name__}'} ({reason})")
    if foreign or not tensors:
        raise CheckpointMismatchError(
            f"{path.name} is not a mapping of names to dense tensors",
            given=f"{len(foreign)} of {len(entries)} entries are something else: {listed(foreign)}",
            expected="a state dict, or one under the key 'state_dict'",
            remedy="save the model's state_dict() alone",
        )
    claimed, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if claimed > MOST_CLAIMED * size:
        raise _damaged(path, f"its tensors claim {claimed} bytes, the file has {size}")
    return tensors


def _refusal(value: object) -> str:
    """Why a value is no plain tensor with data of its own; empty if it is one."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.layout != torch.strided or value.is_nested:
        return "a sparse or nested tensor"
    if value.is_quantized or value.is_complex():
        return "a quantised tensor" if value.is_quantized else "complex numbers"
    if value.device.type != "cpu":
        return f"a tensor without data, on the device '{value.device.type}'"
    if value.is_neg() or _overlaps(value):
        return "a view that shows the same bytes several times" if _overlaps(value) else "a negated view"
    return ""


def _overlaps(tensor: Tensor) -> bool:
    """Whether two of a tensor's elements can lie at the same place."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return bool(tensor.numel())
            reach += stride * (size - 1)
    return False


def _damaged(path: Path, reason: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{path.name} is damaged: {reason}",
        given=path,
        expected="a whole file that torch.save wrote",
        remedy="copy or download the file again and compare its checksum",
    )


def _unsafe(path: Path, message: str) -> CheckpointUnsafeError:
    # torch's message begins with advice to load the file unsafely, which we do not pass on.
    found = re.search(r"GLOBAL \S+|WeightsUnpickler error:\s*(.+)|.*TorchScript.*", message)
    return CheckpointUnsafeError(
        f"{path.name} holds pickled objects other than tensors and was not loaded",
        given=f"{path} ({short(found[1] or found[0]) if found else 'an object that is not allowed'})",
        expected="tensors, numbers, strings, lists and dicts",
        remedy="where you trust the file, save its state dict alone as .safetensors, and give that",
    )
