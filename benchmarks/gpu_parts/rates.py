"""What this very card can do: matrix products and copies, which everything else is compared with."""

from __future__ import annotations

import torch
from gpu_parts.context import DTYPES, Context, per_second, timing_entries


def run(context: Context) -> None:
    """Measure products in every precision, then a copy."""
    size = context.sizes.product
    for precision, dtype in DTYPES.items():
        with context.measured("matrix product", precision=str(precision), shape=[size, size, size]) as row:
            a, b = (torch.randn(size, size, device=context.device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            seconds = context.interleave({"product": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)}, calls=4)
            row |= timing_entries(seconds, "product")
            row["operations_per_second"] = per_second(2.0 * size**3, row["seconds"])
            row["tflops"] = row["operations_per_second"] / 1e12
    with context.measured("copy", bytes_moved=2 * context.sizes.copy_bytes) as row:
        source = torch.zeros(context.sizes.copy_bytes, dtype=torch.uint8, device=context.device)
        target = torch.empty_like(source)
        seconds = context.interleave({"copy": lambda: target.copy_(source)}, calls=4)
        row |= timing_entries(seconds, "copy")
        row["bytes_per_second"] = per_second(2.0 * context.sizes.copy_bytes, row["seconds"])
        row["tb_per_second"] = row["bytes_per_second"] / 1e12


def rates_of(rows: list[dict]) -> dict[str, float]:
    """What `Context.rates` is, from this part's rows."""
    found = {row["precision"]: row["operations_per_second"] for row in rows if "operations_per_second" in row}
    for row in rows:
        if "bytes_per_second" in row:
            found["copy"] = row["bytes_per_second"]
    return found
