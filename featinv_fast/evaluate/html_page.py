"""A report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from featinv_fast.evaluate.pages import WHITE, caption, shown
from featinv_fast.evaluate.report import Picture, Report
from featinv_fast.evaluate.tables import FIGURES_TITLE, figure_cells, group_cells, note_lines, summary_cells
from featinv_fast.jobs.names import readable

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202020; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
.strip td { border: 0; padding: .2rem; text-align: center; color: #666; font-size: 13px; }
.strip img { display: block; width: 160px; height: 160px; }
"""


def html_page(report: Report, *, plot: Image.Image | None = None) -> str:
    """Tables, the plot if given, and all pictures of a report."""
    row = report.rows[0]
    ran = ", ".join(dict.fromkeys(f"{r.backend} on {r.device} in {r.precision}" for r in report.rows if r.backend))
    second = "" if row.second_judge is None else f" and by {row.second_judge} (judge)"
    about = f"Features of {row.backbone}, judged by {row.judge}{second}. {ran or 'Nothing ran'}, {row.created}."
    title = f"Reconstructions by {row.engine}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(about)}</p>",
        _table(summary_cells(report.rows)),
        *(f"<p>{_text(line)}</p>" for line in note_lines(report.notes)),
    ]
    figures = figure_cells(report.rows)
    if len(figures) > 1:
        parts += [f"<h2>{_text(FIGURES_TITLE)}</h2>", _table(figures)]
    if plot is not None:
        parts.append(f'<img alt="quality against steps and time" style="max-width:100%" src="{_inline(plot)}">')
    groups = group_cells(report.rows)
    if len(groups) > 1:
        parts += ["<h2>Groups: cosine / top-1</h2>", _table(groups)]
    if report.pictures:
        parts += ["<h2>Pictures, with the feature cosine</h2>", _strips(report.pictures)]
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _table(cells: Sequence[Sequence[str]]) -> str:
    head, *lines = cells
    body = "".join(f"<tr>{''.join(f'<td>{_text(c)}</td>' for c in line)}</tr>" for line in lines)
    return f"<div class=wide><table><tr>{''.join(f'<th>{_text(c)}</th>' for c in head)}</tr>{body}</table></div>"


def _strips(pictures: Sequence[Picture]) -> str:
    labels = list(dict.fromkeys(label for picture in pictures for label in picture.reconstructions))
    spreads = list(dict.fromkeys(label for picture in pictures for label in picture.spreads))
    titles = ["original", *labels, *(f"{label}: spread (white: {WHITE} levels)" for label in spreads)]
    head = "".join(f"<td>{_text(title)}</td>" for title in titles)
    lines = []
    for picture in pictures:
        name = picture.name + (f" ({picture.group})" if picture.group else "")
        cells = [_figure(picture.original, name)]
        cells += [_figure(image, caption(cosine)) for image, cosine in shown(picture, labels)]
        for label in spreads:
            image, levels = picture.spreads.get(label, (None, None))
            cells.append(_figure(image, "-" if levels is None else f"{levels:.1f} levels"))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class=wide><table class="strip"><tr>{head}</tr>{"".join(lines)}</table></div>'


def _figure(image: Image.Image | None, text: str) -> str:
    shown_image = "" if image is None else f'<img alt="" src="{_inline(image)}">'
    return f"<td>{shown_image}{_text(text)}</td>"


def _text(text: str) -> str:
    """Text as HTML; names of images may hold what is none."""
    return html.escape(readable(text))


def _inline(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
