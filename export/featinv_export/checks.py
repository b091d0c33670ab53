"""Whether what an engine is to carry can be compared with the plain model here, asked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featinv_fast.errors import ExportError


def require_checkable(problems: Mapping[str, Sequence[str]], *, unchecked: bool) -> None:
    """Refuse to install what cannot be checked, unless that was asked for by name.

    Args:
        problems: why each kind of file cannot be run here; empty of one that can.
        unchecked: whether to install it all the same; the engine then says so.

    Raises:
        ExportError: something cannot be checked, and may not be left unchecked.
    """
    if unchecked or not any(problems.values()):
        return
    raise ExportError(
        "what the engine is to carry cannot be checked here",
        given="; ".join(f"{kind}: {', '.join(reasons)}" for kind, reasons in problems.items() if reasons),
        expected="each graph compared with the plain model before it is installed",
        remedy="install what the check needs (pip install 'featinv-fast[export]'), leave out these files, or pass "
        "--unchecked (unchecked=True), which the engine's manifest and model card will say",
    )
