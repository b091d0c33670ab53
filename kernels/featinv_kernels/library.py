"""Ops in the dispatcher: opaque to `torch.compile` and `torch.export`, which keep each as one node.

This is what `torch.library.custom_op` does, less its import of the whole compiler, and with it Triton, when an op first
runs: 900 modules and 0.7 s, as much as importing torch takes.
"""

# torch.library.Library has no annotations
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

# Libraries unregister their ops when they are collected.
_LIBRARY = torch.library.Library("featinv", "FRAGMENT")


def define_op(name: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define `featinv::name`, which has no gradient: going backward through it is an error.

    Args:
        name: of the op.
        compute: what it does on every device; its annotations give the schema. It changes no argument and returns new
            tensors.
        fake: the same for tensors without data: checks the arguments and returns empty tensors of the right shape.

    Returns:
        The op.
    """
    _LIBRARY.define(name + torch.library.infer_schema(compute, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"featinv::{name}", fake, lib=_LIBRARY)

    def backward(*_: Any) -> NoReturn:
        raise NotImplementedError(f"featinv::{name} has no gradient; differentiate its reference.py instead")

    torch.library.register_autograd(f"featinv::{name}", backward, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.featinv, name).default
    return op
