"""The rows of one run of the suite as Markdown, with the targets beside what was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from featinv_fast.evaluate import markdown

Row = dict[str, Any]
NONE = "-"
FAILED = ("red", "error")


def report(rows: Sequence[Row]) -> str:
    """Everything that a person wants to know of a run."""
    first = rows[0]
    dry = "**Dry run: a small model, to try the suite. Its times mean nothing.**\n\n" if first["dry"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in first.get("versions", {}).items())
    head = f"# GPU suite on {first.get('device')}\n\n{dry}{first.get('date')}, revision {first.get('revision')}"
    head += f"{' with changes' if first.get('modified') else ''}; {versions}\n"
    sections = [head]
    for title, cells in (
        ("Targets", targets(rows)),
        ("What the card does", _rates(rows)),
        ("Correctness of the ops", _op_correctness(rows)),
        ("Correctness of rewrites, graphs and images", _gates(rows)),
        ("End to end, `Runtime.invert`, maps to uint8 images on the CPU", _end_to_end(rows)),
        ("Ways to launch the same work, in turns", _launch_paths(rows)),
        ("Sampling loops, each pair in turns", _loops(rows)),
        ("Graphs", _graphs(rows)),
        ("Decoders", _decoders(rows)),
        ("Ops at the full model's shapes", _op_times(rows)),
        ("What failed or was left out", _failures(rows)),
    ):
        if len(cells) > 1:
            sections.append(f"## {title}\n\n{markdown(cells)}\n")
    return "\n".join(sections)


def targets(rows: Sequence[Row]) -> list[list[str]]:
    """The targets, which are for an H100 in fp16 or bf16, and what this run reached."""
    dry = rows[0]["dry"]

    def best(values: Iterable[float], choose: Callable[[list[float]], float], form: str) -> str:
        found = list(values)
        return form.format(choose(found)) if found and not dry else NONE

    runs = [row for row in _of(rows, "end to end") if "seconds" in row]
    large = [row for row in runs if row["batch"] >= 32]
    loops = [row for row in _of(rows, "loop") if row.get("contender") == "ours" and row["batch"] == 1]
    small = [row for row in _of(rows, "LCM and TAESD's shape") if row["batch"] >= 32]
    steps = (1e3 * row["seconds_per_step"] for row in loops)
    lcm = (1e3 * row["seconds"]["median"] for row in runs if row["batch"] == 1 and _setting(row) == "lcm:4")
    return [
        ["target (H100, fp16 or bf16)", "wanted", "reached"],
        ["guided step, batch 1", "<= 2.0 ms", best(steps, min, "{:.2f} ms")],
        ["LCM-4 with decode, batch 1", "<= 8 ms", best(lcm, min, "{:.1f} ms")],
        [
            "whole DDIM-50 image, batch >= 32",
            ">= 400 TFLOP/s",
            best((row["tflops"] for row in large if _setting(row) == "ddim:50"), max, "{:.0f} TFLOP/s"),
        ],
        *(
            [
                f"{name}, batch >= 32",
                f">= {wanted} images/s",
                best((row["images_per_second"] for row in chosen), max, "{:.1f} images/s"),
            ]
            for name, wanted, chosen in (
                ("DDIM-50", 16, [row for row in large if _setting(row) == "ddim:50"]),
                ("LCM-4", 250, [row for row in large if _setting(row) == "lcm:4"]),
                ("LCM-4 with a decoder of TAESD's shape", 400, small),
            )
        ),
    ]


def _of(rows: Sequence[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what and row["status"] == "ok"]


def _setting(row: Row) -> str:
    return f"{row['sampler']}:{row['steps']}"


def _milliseconds(row: Row) -> list[str]:
    seconds = row["seconds"]
    return [f"{1e3 * seconds['median']:.4g}", f"{1e3 * seconds['p20']:.4g} to {1e3 * seconds['p80']:.4g}"]


def _ratio(row: Row) -> str:
    return f"{row['speed_up']['median']:.2f}x" if "speed_up" in row else "1"


def _share(row: Row, name: str) -> str:
    return f"{row[name]:.0%}" if name in row else NONE


def _memory(row: Row) -> str:
    memory = row["peak_memory"]
    return f"{memory.get('gpu_allocated_gib', memory.get('process_resident_gib', float('nan'))):.2f}"


def _rates(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["measured", "rate"]]
    cells += [
        [f"matrix product, {row['precision']}", f"{row['tflops']:.4g} TFLOP/s"] for row in _of(rows, "matrix product")
    ]
    return cells + [["copy, read and written", f"{row['tb_per_second']:.3g} TB/s"] for row in _of(rows, "copy")]


def _op_correctness(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each op and provider: how many cases it served, and how many of them rightly."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["what"] == "op correctness":
            found.setdefault((row["op"], row["provider"]), []).append(row)
    cells = [["op", "provider", "right", "wrong", "not served", "why not"]]
    for (op, provider), members in found.items():
        refused = [row for row in members if row["status"] == "not served"]
        right = sum(row["status"] == "ok" for row in members)
        wrong = len(members) - right - len(refused)
        reasons = list(dict.fromkeys(reason for row in refused for reason in row["reasons"]))
        cells.append([op, provider, str(right), str(wrong), str(len(refused)), "; ".join(reasons)[:80] or NONE])
    return cells


def _gates(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["what", "graph", "precision", "relative error", "of torch", "allowed", ""]]
    for row in rows:
        if row["what"] in ("rewrites in float64", "graph accuracy", "images") and "gate" in row:
            gate = row["gate"]
            usual = f"{gate['relative_of_torch']:.1e}" if "relative_of_torch" in gate else NONE
            numbers = [f"{gate['relative']:.1e}", usual, f"{gate['tolerance']:.1e}", row["status"]]
            cells.append([row["what"], row.get("graph", NONE), row.get("precision", row.get("dtype", NONE)), *numbers])
    return cells


def _end_to_end(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["sampler", "precision", "batch", "ms", "p20 to p80", "images/s", "TFLOP/s", "of product rate", "GiB"]]
    for row in sorted(_of(rows, "end to end"), key=lambda r: (r["sampler"], r["steps"], r["precision"], r["batch"])):
        numbers = [f"{row['images_per_second']:.4g}", f"{row['tflops']:.4g}", _share(row, "share_of_product_rate")]
        head = [_setting(row), row["precision"], str(row["batch"])]
        cells.append([*head, *_milliseconds(row), *numbers, _memory(row)])
    return cells


def _launch_paths(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["path", "sampler", "batch", "ms", "p20 to p80", "images/s", "speed-up", "first call s", "graphs"]]
    for row in _of(rows, "launch path"):
        numbers = [f"{row['images_per_second']:.4g}", _ratio(row), f"{row['first_seconds']:.3g}", row["cuda_graphs"]]
        cells.append([row["contender"], _setting(row), str(row["batch"]), *_milliseconds(row), *numbers])
    return cells


def _loops(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["loop", "compared with", "precision", "batch", "ms a step", "speed-up"]]
    for row in _of(rows, "loop"):
        head = [
            row["contender"],
            row["compared_with"] if "speed_up" in row else NONE,
            row["precision"],
            str(row["batch"]),
        ]
        cells.append([*head, f"{1e3 * row['seconds_per_step']:.4g}", _ratio(row)])
    return cells


def _graphs(rows: Sequence[Row]) -> list[list[str]]:
    head = ["graph", "precision", "batch", "ms", "p20 to p80", "ms launched", "TFLOP/s", "of product rate", "GiB"]
    cells = [head]
    for row in _of(rows, "graph time"):
        launched = f"{1e3 * row['seconds_launched']['median']:.4g}" if "seconds_launched" in row else NONE
        line = [row["graph"], row["precision"], str(row["batch"]), *_milliseconds(row), launched]
        cells.append([*line, f"{row['tflops']:.4g}", _share(row, "share_of_product_rate"), _memory(row)])
    return cells


def _decoders(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["decoder", "precision", "batch", "ms", "p20 to p80", "images/s", "speed-up"]]
    for row in [*_of(rows, "decoder"), *_of(rows, "LCM and TAESD's shape")]:
        head = [row.get("contender", row["what"]), row["precision"], str(row["batch"]), *_milliseconds(row)]
        cells.append([*head, f"{row['images_per_second']:.4g}", _ratio(row) if "contender" in row else NONE])
    return cells


def _op_times(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["op", "case", "provider", "us", "of roofline", "speed-up"]]
    for row in _of(rows, "op time"):
        time = f"{1e6 * row['seconds']['median']:.4g}"
        cells.append([row["op"], row["case"], row["provider"], time, _share(row, "roofline_share"), _ratio(row)])
    return cells


def _failures(rows: Sequence[Row]) -> list[list[str]]:
    names = ("op", "case", "provider", "graph", "precision", "batch", "sampler", "steps", "contender")
    cells = [["part", "what", "status", "error"]]
    for row in rows:
        if row["status"] in (*FAILED, "skipped"):
            about = ", ".join(str(row[name]) for name in names if name in row)
            error = " ".join(str(row.get("error")).split()).replace("|", "/")[:200]
            cells.append([row["part"], f"{row['what']}: {about}" if about else row["what"], row["status"], error])
    return cells
