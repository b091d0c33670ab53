"""The layouts that are read and written, and which of them a checkpoint has."""

from __future__ import annotations

from collections.abc import Collection

from featinv_fast.checkpoints import diffusers_layout, ldm, native
from featinv_fast.checkpoints.known import resemblance
from featinv_fast.checkpoints.listing import listed
from featinv_fast.checkpoints.recipe import Layout
from featinv_fast.errors import ArgumentError, CheckpointMismatchError

LAYOUTS = {layout.name: layout for layout in (native.LAYOUT, ldm.LAYOUT, diffusers_layout.LAYOUT)}


def named_layout(name: str) -> Layout:
    """The layout called `name`.

    Raises:
        ArgumentError: there is none.
    """
    if name not in LAYOUTS:
        raise ArgumentError(
            "unknown checkpoint layout", given=name, expected=f"one of {', '.join(LAYOUTS)}", remedy="name one of these"
        )
    return LAYOUTS[name]


def signatures() -> list[tuple[str, ...]]:
    """Of each layout, the beginnings of names that every checkpoint in it has all of."""
    return [layout.signature for layout in LAYOUTS.values()]


def recognise(keys: Collection[str]) -> Layout:
    """The layout of a checkpoint with these tensor names.

    Raises:
        CheckpointMismatchError: none of ours; the message says what it resembles.
    """
    for layout in LAYOUTS.values():
        if layout.recognises(keys):
            return layout
    raise CheckpointMismatchError(
        f"this is not a FeatInv checkpoint but {resemblance(keys)}",
        given=f"{len(keys)} tensors: {listed(keys)}",
        expected=f"a FeatInv checkpoint in one of the layouts {', '.join(LAYOUTS)}: condition encoder, ControlNet, "
        "U-Net and autoencoder together",
        remedy="give the checkpoint that FeatInv's training saved, not a part of it or the model it started from",
    )
