"""Rows of several evaluations side by side: by default the figures that FeatMap's tables compare."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from featinv_fast.checks import did_you_mean
from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate.report import Row
from featinv_fast.evaluate.tables import TITLES, figure_forms, with_interval

COMPARED = (
    "cosine",
    "ssim",
    "lpips",
    "feature_distance",
    "total_variation",
    "top1",
    "judge_cosine",
    "judge_total_variation",
)
# Columns of the CSV file that say what a row is.
_ABOUT = (
    "engine", "backbone", "judge", "second_judge", "label", "kind", "sampler", "steps", "guidance_scale", "samples", "n"
)  # fmt: skip


def comparison_cells(rows: Sequence[Row], measures: Sequence[str] | None = None) -> list[list[str]]:
    """A head, and a line for each row over all images.

    Args:
        rows: of reports.
        measures: names of figures; `COMPARED` where nothing is said, as far as some row has them.

    Raises:
        ArgumentError: no row has such a figure.
    """
    rows = _over_all(rows)
    known = list(dict.fromkeys(name for row in rows for name in row.figures))
    unknown = [name for name in measures or () if name not in known]
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise ArgumentError(
            "no row has these figures",
            given=unknown,
            expected=sorted(known),
            remedy=f"did you mean {near}?" if near else "name others, or evaluate again with what these need",
        )
    names = [name for name in measures or COMPARED if name in known]
    forms = figure_forms(names)
    lines = [["engine", "features of", "setting", "n", *(title for title, _ in forms.values())]]
    for row in rows:
        figures = [with_interval(row.figures.get(name), form) for name, (_, form) in forms.items()]
        lines.append([row.engine, row.backbone, TITLES.get(row.kind, row.label), str(row.n), *figures])
    return lines


def comparison_csv(rows: Sequence[Row]) -> str:
    """All figures of each row over all images, with the ends of their intervals, as CSV."""
    rows = _over_all(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    distances = list(dict.fromkeys(name for row in rows for name in row.distances))
    columns = [*_ABOUT, *(f"{name}{end}" for name in names for end in ("", "_low", "_high")), *distances]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line: dict[str, Any] = {name: getattr(row, name) for name in _ABOUT}
        for name, figure in row.figures.items():
            line |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
        writer.writerow(line | {name: distance.value for name, distance in row.distances.items()})
    return text.getvalue()


def _over_all(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.group is None]
