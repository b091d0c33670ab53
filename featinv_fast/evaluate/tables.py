"""The rows of a report as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featinv_fast.evaluate.measures import MEASURES, SPREADS
from featinv_fast.evaluate.report import Figure, Kind, Row

MISSING = "-"
FIGURES_TITLE = "Means over images, with 95 % bootstrap intervals"
TITLES = {Kind.AUTOENCODER: "autoencoder (ceiling)", Kind.UNRELATED: "unrelated image (floor)"}


def summary_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A head and a line for each setting over all images."""
    rows = [row for row in rows if row.group is None]
    distances = list(dict.fromkeys(name for row in rows for name in row.distances))
    with_ceiling = any(row.share_of_ceiling is not None for row in rows)
    share = ["of ceiling"] if with_ceiling else []
    lines = [["setting", "n", "cosine", "median", *share, "top-1", "top-5", "ms/image", *distances]]
    for row in rows:
        milliseconds = None if row.seconds_per_image is None else 1000 * row.seconds_per_image
        lines.append(
            [
                TITLES.get(row.kind, row.label),
                f"{row.n} ({row.failed} failed)" if row.failed else str(row.n),
                _written(row.cosine.mean if row.cosine else None, ".4f"),
                _written(row.cosine.median if row.cosine else None, ".4f"),
                *([_written(row.share_of_ceiling, ".1%")] if with_ceiling else []),
                _written(row.top1, ".1%"),
                _written(row.top5, ".1%"),
                _written(milliseconds, ".1f"),
                *(_written(row.distances[name].value if name in row.distances else None, ".3f") for name in distances),
            ]
        )
    return lines


def group_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A head, and a line for each group with the mean cosine and the top-1 match of each setting."""
    cells: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        if row.group is not None:
            pair = f"{_written(row.cosine.mean if row.cosine else None, '.4f')} / {_written(row.top1, '.1%')}"
            cells.setdefault(row.group, {})[TITLES.get(row.kind, row.label)] = pair
            counts[row.group] = max(counts.get(row.group, 0), row.n)
    titles = list(dict.fromkeys(title for by_title in cells.values() for title in by_title))
    lines = [["group", "n", *titles]]
    for group, by_title in cells.items():
        lines.append([group or "(none)", str(counts[group]), *(by_title.get(title, MISSING) for title in titles)])
    return lines


def figure_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A head with the settings, and a line for each measure with its mean over all images and 95 % interval."""
    rows = [row for row in rows if row.group is None]
    lines = [["measure", *(TITLES.get(row.kind, row.label) for row in rows)]]
    for name, (title, form) in figure_forms([name for row in rows for name in row.figures]).items():
        lines.append([title, *(with_interval(row.figures.get(name), form) for row in rows)])
    return lines


def figure_forms(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name of a figure -> its title and the form of its values; its name, where no measure is known by it."""
    known = {measure.name: (measure.title, measure.form) for measure in (*MEASURES, *SPREADS)}
    return {name: known.get(name, (name, ".4f")) for name in dict.fromkeys(names)}


def with_interval(figure: Figure | None, form: str) -> str:
    """A mean and the ends of its interval."""
    if figure is None:
        return MISSING
    return f"{figure.mean:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def note_lines(notes: Mapping[Kind, str]) -> list[str]:
    """What is to be known of the rows of a kind, a line for each."""
    return [f"{TITLES.get(kind, kind)}: {note}" for kind, note in notes.items()]


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Cells, the head first, as a Markdown table that also reads well as it is."""
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(cells[0]))]
    lines = []
    for first, *others in cells:
        padded = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _written(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
