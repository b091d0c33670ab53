"""Tables of several evaluations."""

import csv
import dataclasses
import io
import json

import pytest

from featinv_fast.cli import main
from featinv_fast.errors import ArgumentError, UnreadableFileError
from featinv_fast.evaluate import Report, Setting, comparison_cells, comparison_csv, evaluate


@pytest.fixture(scope="module")
def reports(make_runtime, backbone, examples):
    first = evaluate(make_runtime(), backbone, examples[:4], [Setting(steps=2), Setting(steps=8)])
    rows = [dataclasses.replace(row, engine="other", backbone="test_convnext, layer 2") for row in first.rows]
    rows[0] = dataclasses.replace(rows[0], figures={name: f for name, f in rows[0].figures.items() if name != "ssim"})
    return first, dataclasses.replace(first, rows=tuple(rows))


def test_saved_rows_are_read_again(reports, tmp_path):
    reports[0].save(tmp_path)
    assert Report.read_rows(tmp_path) == Report.read_rows(tmp_path / "report.json") == reports[0].rows


def test_rows_of_two_engines(reports):
    rows = [row for report in reports for row in report.rows]
    head, *lines = comparison_cells(rows)
    assert head == [
        "engine", "features of", "setting", "n", "feature cosine", "SSIM", "relative feature distance",
        "total variation of classes", "top-1",
    ]  # fmt: skip
    assert [line[:4] for line in lines] == [
        [engine, f"test_convnext, layer {layer}", setting, "4"]
        for engine, layer in (("blurring", "final"), ("other", "2"))
        for setting in ("DDIM-2 g=1.75", "DDIM-8 g=1.75", "unrelated image (floor)")
    ]
    figure = reports[0].row("DDIM-8 g=1.75").figures["cosine"]
    assert lines[1][4] == f"{figure.mean:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
    assert [line[5] == "-" for line in lines] == [False, False, False, True, False, False]
    assert comparison_cells(rows, ["psnr"])[0][4:] == ["PSNR (dB)"]
    with pytest.raises(ArgumentError, match="did you mean psnr"):
        comparison_cells(rows, ["pnsr"])


def test_csv_has_every_figure(reports):
    rows = [row for report in reports for row in report.rows]
    lines = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    assert [line["engine"] for line in lines] == ["blurring"] * 3 + ["other"] * 3
    for line, row in zip(lines, [row for row in rows if row.group is None], strict=True):
        for name in reports[0].rows[0].figures:
            figure = row.figures.get(name)
            expected = ["", "", ""] if figure is None else [str(x) for x in (figure.mean, figure.low, figure.high)]
            assert [line[name + end] for end in ("", "_low", "_high")] == expected
    assert (lines[0]["steps"], lines[2]["steps"], lines[0]["kind"]) == ("2", "", "engine")


def test_the_command(reports, tmp_path, capsys):
    for number, report in enumerate(reports):
        report.save(tmp_path / str(number))
    runs = [str(tmp_path / "0"), str(tmp_path / "1" / "report.json")]
    assert main(["table", *runs]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("| engine ")
    assert len(out.splitlines()) == 2 + 6
    assert main(["table", *runs, "--csv"]) == 0
    assert capsys.readouterr().out.splitlines() == comparison_csv([r for one in reports for r in one.rows]).splitlines()
    assert main(["table", *runs, "--csv", "--measures", "ssim"]) == 2
    assert main(["table", str(tmp_path / "gone")]) == 2


def test_what_is_no_report(reports, tmp_path):
    whole = reports[0].to_dict()
    for damaged in (
        {"format_version": 1},
        {**whole, "format_version": 9},
        {**whole, "rows": [{"label": "x"}]},
        {**whole, "rows": 3},
        [],
    ):
        (tmp_path / "report.json").write_text(json.dumps(damaged))
        with pytest.raises(UnreadableFileError, match="no report of an evaluation"):
            Report.read_rows(tmp_path)
    (tmp_path / "report.json").write_bytes(b"{\xff")
    with pytest.raises(UnreadableFileError):
        Report.read_rows(tmp_path)
