"""Names that training tools put around a model's own, told by the names themselves.

DataParallel, DeepSpeed, FSDP and torch.compile insert a component of their own anywhere in a name (`module.`,
`_forward_module.`, `_orig_mod.`); Lightning modules and trainers put their attribute before all of them (`model.`,
`ema_model.`). The former are dropped wherever they stand. The latter needs no list: it is whatever stands before a
whole model of a known layout, if there is one such prefix alone.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from featinv_fast.checkpoints.listing import listed, short
from featinv_fast.errors import CheckpointMismatchError

T = TypeVar("T")

logger = logging.getLogger(__name__)

INSERTED = frozenset(
    {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_ddp_module"}
)


def unwrapped(tensors: Mapping[str, T], signatures: Iterable[Sequence[str]] = ()) -> dict[str, T]:
    """The tensors under the model's own names.

    Args:
        tensors: by name.
        signatures: for each known layout, the beginnings of names that a whole model has all of.

    Raises:
        CheckpointMismatchError: several whole models lie under different prefixes, or two names become the same.
    """
    plain = renamed(tensors, {name: _without_inserted(name) for name in tensors})
    prefix = _prefix(plain, signatures)
    return renamed(plain, {name: name.removeprefix(prefix) for name in plain}) if prefix else plain


def _without_inserted(name: str) -> str:
    parts = name.split(".")
    return ".".join(part for part in parts if part not in INSERTED) if INSERTED.intersection(parts) else name


def _prefix(names: Collection[str], signatures: Iterable[Sequence[str]]) -> str:
    whole: set[str] = set()
    for beginnings in signatures:
        found = [_before(beginning, names) for beginning in beginnings]
        whole |= set.intersection(*found)
    if len(whole) > 1:
        raise CheckpointMismatchError(
            "the file holds several models of the same kind",
            given=f"whole models under the prefixes {listed(repr(short(prefix)) for prefix in whole)}",
            expected="one model",
            remedy="save the state dict of the one that is to be used, averaged weights or plain ones, alone",
        )
    prefix = next(iter(whole), "")
    if prefix:
        logger.info("the prefix '%s' of the tensors' names was left out", prefix)
    return prefix


def _before(beginning: str, names: Iterable[str]) -> set[str]:
    """What stands before `beginning` in names that have it at the start of a component."""
    found = set()
    for name in names:
        position = -1 if name.startswith(beginning) else name.find(f".{beginning}")
        if position >= 0 or name.startswith(beginning):
            found.add(name[: position + 1])
    return found


def renamed(tensors: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """The tensors under other names.

    Raises:
        CheckpointMismatchError: two names become the same.
    """
    result = {names[name]: tensor for name, tensor in tensors.items()}
    if len(result) < len(tensors):
        taken: set[str] = set()
        twice = [new for new in names.values() if new in taken or taken.add(new)]  # type: ignore[func-returns-value]
        raise CheckpointMismatchError(
            "several tensors stand for the same one, under the names that different tools give it",
            given=f"{len(twice)} names: {listed(twice)}",
            expected="each tensor once",
            remedy="save the inner model's state dict alone",
        )
    return result
