"""Throughput and latency against batch size, as `featinv bench` measured them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from featinv_fast.checks import require_matplotlib
from featinv_fast.errors import ArgumentError

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell them apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def bench_plot(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Images per second and seconds of a call against batch size, a line for each backend and sampler.

    Args:
        rows: of one machine; those that were not timed are left out.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ArgumentError: no row was timed.
    """
    timed = sorted((row for row in rows if "seconds" in row), key=lambda row: row["batch"])
    if not timed:
        raise ArgumentError(
            "there is nothing to plot",
            given="no row with a time",
            expected="at least one",
            remedy="see why none was timed",
        )
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in timed:
        lines.setdefault(f"{row['backend']} {row['precision']}, {row['sampler']}:{row['steps']}", []).append(row)
    # A Figure of its own: pyplot would keep global state and look for a display.
    figure = require_matplotlib().Figure(figsize=(9, 3.9), dpi=130, layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    for number, (label, members) in enumerate(lines.items()):
        style = {
            "label": label,
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number // len(COLOURS) % len(MARKERS)],
            "markersize": 5,
        }
        batches = [row["batch"] for row in members]
        throughput.plot(batches, [row["images_per_second"] for row in members], **style)
        medians = [row["seconds"]["median"] for row in members]
        low, high = ([row["seconds"][name] for row in members] for name in ("p20", "p80"))
        latency.plot(batches, medians, **style)
        latency.fill_between(batches, low, high, color=style["color"], alpha=0.2, linewidth=0)
    ticks = sorted({row["batch"] for row in timed})
    for axes, title in ((throughput, "images per second"), (latency, "seconds per call")):
        axes.set(title=title, xlabel="batch size", xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = throughput.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False)
    figure.suptitle(f"{timed[0]['engine']} on {timed[0]['device']}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
