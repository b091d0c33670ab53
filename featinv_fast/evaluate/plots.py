"""Quality against steps, and against time, for each sampler."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from featinv_fast.checks import require_matplotlib
from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate.report import Kind, Row

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell them apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows over all images by sampler and guidance, each list ordered by steps; rows without images left out.

    Where there are several engines, their names tell them apart.
    """
    shown = [row for row in rows if row.kind is Kind.ENGINE and row.group is None and row.cosine is not None]
    several = len({row.engine for row in shown}) > 1
    found: dict[str, list[Row]] = {}
    for row in shown:
        engine = f", {row.engine}" if several else ""
        found.setdefault(f"{row.sampler}, guidance {row.guidance_scale:g}{engine}", []).append(row)
    return {name: sorted(members, key=lambda row: row.steps or 0) for name, members in sorted(found.items())}


def quality_plot(rows: Sequence[Row]) -> Image.Image:
    """Mean cosine and top-1 match against steps, and mean cosine against time, with ceiling and floor.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ArgumentError: the rows hold no setting of an engine.
    """
    lines = curves(rows)
    if not lines:
        raise ArgumentError(
            "there is nothing to plot",
            given="no row of an engine",
            expected="at least one",
            remedy="pass the rows of an evaluation",
        )
    # A Figure of its own: pyplot would keep global state and look for a display.
    figure = require_matplotlib().Figure(figsize=(12, 3.9), dpi=130, layout="constrained")
    panels = figure.subplots(1, 3)
    _panel(panels[0], rows, lines, title="Feature cosine", x="steps", y="mean cosine")
    _panel(panels[1], rows, lines, title="Class match", x="steps", y="top-1 match (%)")
    _panel(panels[2], rows, lines, title="Feature cosine by time", x="milliseconds per image", y="mean cosine")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 130 // max(map(len, labels))))  # what the figure's width holds
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _panel(axes: Any, rows: Sequence[Row], lines: Mapping[str, Sequence[Row]], *, title: str, x: str, y: str) -> None:
    """One plot of a quality against steps or time, with the ceiling as a line and the floor in words."""
    for number, (name, members) in enumerate(lines.items()):
        points = [(_value(row, x), _value(row, y)) for row in members if _value(row, y) is not None]
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        axes.plot([point[0] for point in points], [point[1] for point in points], label=name, **style)
    for row in rows:
        height = _value(row, y)
        if row.group is not None or height is None:
            continue
        if row.kind is Kind.AUTOENCODER:
            axes.axhline(height, color="#404040", linestyle="--", linewidth=1.2, label="autoencoder (ceiling)")
        if row.kind is Kind.UNRELATED:  # a line so far below would flatten the curves
            words = f"unrelated image: {height:.3g}"
            axes.text(0.98, 0.03, words, color="#707070", fontsize=9, ha="right", transform=axes.transAxes)
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log")
    if x == "steps":
        ticks = sorted({row.steps for members in lines.values() for row in members if row.steps})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
    else:
        axes.xaxis.set_major_locator(importlib.import_module("matplotlib.ticker").LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _value(row: Row, axis: str) -> float | None:
    """What a row has on the axis called so."""
    match axis:
        case "steps":
            return row.steps
        case "milliseconds per image":
            return None if row.seconds_per_image is None else 1000 * row.seconds_per_image
        case "mean cosine":
            return None if row.cosine is None else row.cosine.mean
        case _:
            return None if row.top1 is None else 100 * row.top1
