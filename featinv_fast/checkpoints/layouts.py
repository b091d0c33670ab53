"""The layouts that are read and written, and which of them a checkpoint has."""

from __future__ import annotations

from collections.abc import Collection

from featinv_fast.checkpoints import diffusers_layout, ldm, native
from featinv_fast.checkpoints.known import refuse_wrapped, resemblance
from featinv_fast.checkpoints.recipe import LISTED, Layout
from featinv_fast.errors import ArgumentError, CheckpointMismatchError

LAYOUTS = {layout.name: layout for layout in (native.LAYOUT, ldm.LAYOUT, diffusers_layout.LAYOUT)}


def named_layout(name: str) -> Layout:
    """The layout called `name`.

    Raises:
        ArgumentError: there is none.
    """
    if name not in LAYOUTS:
        raise ArgumentError("unknown checkpoint layout", given=name, expected=f"one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def recognise(keys: Collection[str]) -> Layout:
    """The layout of a checkpoint with these tensor names.

    Raises:
        CheckpointMismatchError: none of ours; the message says what it resembles.
    """
    refuse_wrapped(keys)
    for layout in LAYOUTS.values():
        if layout.recognises(keys):
            return layout
    first = ", ".join(sorted(keys)[:LISTED])
    raise CheckpointMismatchError(
        f"this is not a FeatInv checkpoint but {resemblance(keys)}",
        given=f"{len(keys)} tensors: {first}{', ...' if len(keys) > LISTED else ''}",
        expected=f"a FeatInv checkpoint in one of the layouts {', '.join(LAYOUTS)}: condition encoder, ControlNet, "
        "U-Net and autoencoder together",
        remedy="give the checkpoint that FeatInv's training saved, not a part of it or the model it started from",
    )
