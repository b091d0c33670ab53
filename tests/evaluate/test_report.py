import dataclasses
import json
import re
import sys
import types
import typing

import numpy as np
import pytest

from featinv_fast.errors import ArgumentError, MissingPackageError
from featinv_fast.evaluate import (
    MEASURES,
    CosineSummary,
    Distance,
    FewSamplesWarning,
    Item,
    Kind,
    PooledFeatures,
    Row,
    Setting,
    evaluate,
    figure_cells,
    group_cells,
    html_page,
    markdown,
    quality_plot,
    summary_cells,
)
from featinv_fast.evaluate.plots import curves

SETTINGS = (Setting(steps=8), Setting(steps=2), Setting(sampler="lcm", steps=4, guidance_scale=1.0))
LABELS = ["DDIM-8 g=1.75", "DDIM-2 g=1.75", "LCM-4", "autoencoder", "unrelated"]


@pytest.fixture(scope="module")
def report(make_runtime, backbone, examples):
    with pytest.warns(FewSamplesWarning):
        return evaluate(
            make_runtime(failing=(4,)),
            backbone,
            examples,
            SETTINGS,
            autoencoder=lambda pixels: 0.9 * pixels,
            spaces=[PooledFeatures(backbone, name="pooled_distance")],
            pictures=1,
        )


def assert_fits(hint, value):
    """`value`, read from JSON, is of the type that a dataclass declares."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        assert value.keys() == hints.keys()
        for name, inner in hints.items():
            assert_fits(inner, value[name])
    elif isinstance(hint, types.UnionType):
        if value is not None:
            assert_fits(next(inner for inner in hint.__args__ if inner is not type(None)), value)
    elif hint is Kind:
        assert value in list(Kind)
    elif typing.get_origin(hint) is dict:
        for inner in value.values():
            assert_fits(hint.__args__[1], inner)
    else:
        assert isinstance(value, (int, float) if hint is float else hint), (hint, value)


def test_json_holds_every_row_and_item(report, tmp_path):
    paths = report.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "images.jsonl"]
    saved = json.loads(paths[0].read_text())
    assert saved["format_version"] == 1
    assert [row["label"] for row in saved["rows"] if row["group"] is None] == LABELS
    for row in saved["rows"]:
        assert_fits(Row, row)
    first = saved["rows"][0]
    assert_fits(CosineSummary, first["cosine"])
    assert_fits(Distance, first["distances"]["pooled_distance"])
    assert (first["engine"], first["backend"], first["sampler"], first["n"], first["failed"]) == (
        "blurring",
        "blur",
        "ddim",
        10,
        1,
    )
    assert first["versions"].keys() >= {"featinv-fast", "torch", "timm"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["created"])
    items = [json.loads(line) for line in paths[1].read_text().splitlines()]
    assert len(items) == 4 * 11
    for item, expected in zip(items, report.items, strict=True):
        figures = {name: item.pop(name) for name in expected.figures if name != "cosine"}
        assert_fits(Item, {**item, "figures": figures})
        assert expected.error is not None or figures.keys() == {
            "top1", "top5", "psnr", "ssim", "feature_distance", "kl_divergence", "total_variation"
        }  # fmt: skip
    assert sum(item["error"] is not None for item in items) == 3


def test_rows_are_found_by_label_and_group(report):
    assert report.row("LCM-4").steps == 4
    assert report.row("LCM-4", "plain").n == 4
    with pytest.raises(KeyError, match="LCM-4"):
        report.row("LCM-5")


def test_summary_table(report):
    head, *lines = summary_cells(report.rows)
    assert head[:3] == ["setting", "n", "cosine"]
    assert head[-1] == "pooled_distance"
    assert [line[0] for line in lines] == [*LABELS[:3], "autoencoder (ceiling)", "unrelated image (floor)"]
    assert lines[0][1] == "10 (1 failed)"
    assert lines[0][2] == f"{report.rows[0].cosine.mean:.4f}"
    assert lines[3][4] == "100.0%"
    assert lines[4][-1] == "-"


def test_table_of_figures(report):
    head, *lines = figure_cells(report.rows)
    assert head == ["measure", *LABELS[:3], "autoencoder (ceiling)", "unrelated image (floor)"]
    known = report.rows[0].figures
    assert [line[0] for line in lines] == [measure.title for measure in MEASURES if measure.name in known]
    assert len(lines) == len(known) == 8
    top1, ssim = (next(line for line in lines if line[0] == title) for title in ("top-1", "SSIM"))
    figure = report.row("unrelated").figures["ssim"]
    assert ssim[5] == f"{figure.mean:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
    assert top1[2].count("%") == 3
    lines = figure_cells([dataclasses.replace(report.rows[0], figures={}), report.row("unrelated")])
    assert lines[5][1] == "-"
    assert len(figure_cells([dataclasses.replace(report.rows[0], figures={})])) == 1


def test_without_a_ceiling_there_is_no_share_of_it(report):
    rows = [dataclasses.replace(row, share_of_ceiling=None) for row in report.rows if row.kind != "autoencoder"]
    assert "of ceiling" in summary_cells(report.rows)[0]
    head, *lines = summary_cells(rows)
    assert "of ceiling" not in head
    assert {len(line) for line in lines} == {len(head)}


def test_group_table(report):
    head, *lines = group_cells(report.rows)
    assert head == ["group", "n", *LABELS[:3], "autoencoder (ceiling)"]
    assert [line[:2] for line in lines] == [["noise/1", "4"], ["noise/2", "3"], ["plain", "4"]]
    row = report.row("LCM-4", "noise/2")
    assert lines[1][4] == f"{row.cosine.mean:.4f} / {row.top1:.1%}"
    assert group_cells([row for row in report.rows if row.group is None]) == [["group", "n"]]


def test_markdown_is_aligned():
    assert markdown([["name", "n"], ["a", "10000"]]) == "| name |     n |\n| ---- | ----: |\n| a    | 10000 |"
    assert markdown([["x", "y"]]) == "| x   |   y |\n| --- | --: |"


def test_curves_go_by_sampler_and_guidance(report):
    lines = curves(report.rows)
    assert {name: [row.steps for row in rows] for name, rows in lines.items()} == {
        "ddim, guidance 1.75": [2, 8],
        "lcm, guidance 1": [4],
    }
    assert lines["ddim, guidance 1.75"][0].cosine.mean < lines["ddim, guidance 1.75"][1].cosine.mean


def test_curves_of_several_engines_are_told_apart(report):
    student = [dataclasses.replace(row, engine="student") for row in report.rows if row.label == "DDIM-2 g=1.75"]
    lines = curves([*report.rows, *student])
    assert {name: [row.steps for row in rows] for name, rows in lines.items()} == {
        "ddim, guidance 1.75, blurring": [2, 8],
        "ddim, guidance 1.75, student": [2],
        "lcm, guidance 1, blurring": [4],
    }


def test_the_plot_shows_every_curve(report):
    pytest.importorskip("matplotlib")
    picture = np.asarray(quality_plot(report.rows)).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x40, 0x40, 0x40)):
        assert (picture == colour).all(axis=1).sum() > 50
    with pytest.raises(ArgumentError, match="nothing to plot"):
        quality_plot([row for row in report.rows if row.label == "autoencoder"])


def test_without_matplotlib_the_extra_is_named(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"featinv-fast\[evaluate\]"):
        quality_plot(report.rows)


def test_the_html_page_needs_no_other_file(report):
    page = html_page(report)
    assert page.startswith("<!doctype html>")
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 3 * 5  # groups; original, autoencoder, settings
    assert not re.search(r'src="(?!data:)|href=|https?:', page)
    assert "DDIM-8 g=1.75" in page
    assert all(cell in page for line in figure_cells(report.rows) for cell in line)
    assert "noise/2" in page
    assert page.count("<tr>") == page.count("</tr>")


def test_names_are_escaped_in_html(report):
    picture = dataclasses.replace(report.pictures[0], name="<script>alert(1)</script>")
    page = html_page(dataclasses.replace(report, pictures=(picture,)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
