"""The model card of the built-in engine: what it is, what it is worth, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featinv_export.demo_build.measure import NATURAL, STUDENT, TEACHER, find
from featinv_export.demo_build.options import PICTURES, PLOT
from featinv_fast import demo
from featinv_fast.config import from_dict
from featinv_fast.demo import builtin
from featinv_fast.evaluate import WORLD_DISTANCE, Kind, Row, markdown, summary_cells

INTRODUCTION = """\
# The built-in engine

A complete [FeatInv](https://arxiv.org/abs/2505.21032) system of {millions:.1f} million parameters, trained from nothing
in featinv-fast's synthetic world: scenes of one to three shaped, coloured and patterned objects, 64 x 64 pixels, 20
classes (`featinv_fast.demo`). It turns the final feature maps of the small ConvNeXt beside it, [256, 4, 4], back into
images.

| | |
|---|---|
| `student/` | few steps, by {method} from the teacher; what `featinv_fast.Runtime()` opens |
| `teacher/` | DDIM with 50 steps: `Runtime(demo.load_engine("teacher"))` |
| `{backbone}` | the ConvNeXt whose features they invert: `demo.backbone()` |
| `{results}` | every figure below, one row for each run: `demo.results()` |

```python
from featinv_fast import Runtime, demo

scenes = demo.load_scenes(16)  # of the test split: .images .labels .concepts .descriptions
images = Runtime().invert(scenes.features).images  # uint8 [16, 64, 64, 3]
```

It shows how FeatInv works and keeps the code honest. It knows nothing but its world: for photographs, and for the
networks that people use, train or export a model of full size.

![originals and their reconstructions]({pictures})

Parameters: {parameters}.
The backbone has {accuracy:.1%} of the test scenes right. Weights are stored in fp16 and computed with in fp32; the
README.md in each engine's folder says what that costs."""

FIGURES = """\
## Figures

On the first {scenes} scenes of the test split, which no training has seen; scene k is sampled with seed k.
Cosine: similarity of the feature vectors of the original and of the reconstruction at each location, mean
over locations and scenes. Top-1 (top-5): the backbone's class of the original is its first (among its first five) of
the reconstruction. `{distance}`: Frechet distance between the sets of images in the backbone's own pooled
features; it is not FID. The ceiling is what the autoencoder alone makes of the originals; unrelated images compare each
original with one of another class. Times are those of the machine that built it{machine}.
The refined teacher and the student were trained on what this very backbone sees of their images, too: its cosines and
matches are kinder to them than a stranger's eye, which has a table of its own.

{goals}

### Samplers and steps

{samplers}

![quality against steps and time]({plot})

### Spatial features against pooled ones

Both engines make 50 steps, both are judged by the final map. The pooled one was given one vector for the whole image;
it and the one of stage 1 were trained in the same way, for fewer steps and on shorter paths of their own.

{baselines}

### An earlier stage against the last one

"judge" is the map whose vectors are compared: the final map for both engines, and stage 1 for the one that inverts
stage 1. The cosines of two judges have different ceilings: compare the shares.

{stages}

### A stranger's eye

The same by a network that had no part in the training of any engine: `{stranger_name}`, which has
{strangers_accuracy:.1%} of the test scenes right.{shipped}

{stranger}

### What no training has seen

The student ({few}), mean cosine / top-1 match against the styled or corrupted image that the features came from, and
the backbone's accuracy there. Corruptions and severities after
[Hendrycks and Dietterich](https://arxiv.org/abs/1903.12261).

{styles}

{corruptions}"""

MAKING = """\
## How it was made

```
pip install 'featinv-fast[all]'
python -m featinv_export.demo_build --root runs
```

trains by the recipes in `featinv_fast/demo/recipes/`, in this order, each with a fixed seed; exports; measures; and
writes this folder. Killed, it goes on where it was. The scenes of the three splits come from disjoint streams of one
seeded generator.

{recipes}
"""


def card(results: Mapping[str, Any]) -> str:
    """Markdown of what `measure` found, the content of `results.json`."""
    tables = {
        name: [from_dict(Row, row, where=name) for row in results[name]]
        for name in ("samplers", "baselines", "stages", "stranger", "robustness")
    }
    accuracy, parameters = results["accuracy"], results["parameters"]
    ran = next(row for row in tables["samplers"] if row.backend)
    introduction = INTRODUCTION.format(
        millions=sum(parameters.values()) / 1e6,
        method="consistency distillation (LCM)" if results["student"] == "consistency" else "trajectory distillation",
        backbone=builtin.BACKBONE,
        results=builtin.RESULTS,
        pictures=PICTURES,
        parameters=", ".join(f"{name.rpartition('.')[2]} {count / 1e6:.2f} M" for name, count in parameters.items()),
        accuracy=accuracy[NATURAL],
    )
    figures = FIGURES.format(
        scenes=results["scenes"],
        distance=WORLD_DISTANCE,
        machine=f" ({ran.backend} on its {ran.device})",
        goals=markdown(_goals(tables["samplers"], results["student"])),
        samplers=markdown(_with_engines(tables["samplers"])),
        plot=PLOT,
        baselines=markdown(_with_engines(tables["baselines"])),
        stages=markdown(_with_judges(tables["stages"])),
        strangers_accuracy=results["strangers_accuracy"],
        stranger_name=(strangers_name := tables["stranger"][0].judge.partition(",")[0]),
        shipped=_shipped_judge(results["judge"], strangers_name),
        stranger=markdown(_with_engines(tables["stranger"])),
        few=find(tables["samplers"], STUDENT[results["student"]], results["student"]).label,
        styles=markdown(_styles(tables["robustness"], accuracy)),
        corruptions=markdown(_corruptions(tables["robustness"], accuracy)),
    )
    return "\n\n".join([introduction, figures, MAKING.format(recipes=markdown(_recipes(results["recipes"])))])


def _goals(rows: Sequence[Row], student: str) -> list[list[str]]:
    """The figures that the training aimed at."""
    teacher, few = find(rows, TEACHER, "teacher"), find(rows, STUDENT[student], student)
    assert teacher.cosine is not None
    assert few.cosine is not None
    shares = {
        f"{teacher.label} cosine, of the autoencoder's": (teacher.share_of_ceiling, 0.90),
        f"{few.label} cosine, of {teacher.label}'s": (few.cosine.mean / teacher.cosine.mean, 0.97),
        f"{teacher.label} top-1 match": (teacher.top1, 0.90),
        f"{few.label} top-1 match": (few.top1, 0.87),
    }
    lines = [[name, f"{value or 0:.1%}", f"{goal:.0%}"] for name, (value, goal) in shares.items()]
    return [["figure", "reached", "goal"], *lines]


def _with_engines(rows: Sequence[Row]) -> list[list[str]]:
    return _with_column("engine", [row.engine if row.kind is Kind.ENGINE else "" for row in rows], rows)


def _shipped_judge(judge: Mapping[str, Any], stranger: str) -> str:
    """What `demo.judge()` has right, and where it is not the network of the table, that it is not."""
    right = ", ".join(f"{name} {share:.1%}" for name, share in judge["accuracy"].items())
    other = "" if judge["backbone"] == stranger else f" The table was made by `{stranger}`, which is not shipped."
    made = (
        f"`demo.judge()` is `{judge['backbone']}` (`judge.toml`), with heads of concepts. Of the test scenes, and of "
        f"the objects in them, it has right: {right}."
    )
    return f"{other}\n\n{made}"


def _with_judges(rows: Sequence[Row]) -> list[list[str]]:
    head, *lines = _with_column("judge", [row.judge.partition(", ")[2] for row in rows], rows)
    inverted = [row.backbone.partition(", ")[2] if row.kind is Kind.ENGINE else "" for row in rows]
    return [["inverts", *head], *([layer, *line] for layer, line in zip(inverted, lines, strict=True))]


def _with_column(title: str, values: Sequence[str], rows: Sequence[Row]) -> list[list[str]]:
    head, *lines = summary_cells(rows)
    return [[title, *head], *([value, *line] for value, line in zip(values, lines, strict=True))]


def _styles(rows: Sequence[Row], accuracy: Mapping[str, float]) -> list[list[str]]:
    by_group = {row.group: row for row in rows}
    lines = [[str(style), _pair(by_group[style]), f"{accuracy[style]:.1%}"] for style in demo.Style]
    return [["style", "cosine / top-1", "accuracy"], *lines]


def _corruptions(rows: Sequence[Row], accuracy: Mapping[str, float]) -> list[list[str]]:
    by_group = {row.group: row for row in rows}
    lines = [["corruption", *(f"severity {severity}" for severity in demo.SEVERITIES)]]
    for corruption in demo.Corruption:
        groups = [f"{corruption}/{severity}" for severity in demo.SEVERITIES]
        lines.append([str(corruption), *(_pair(by_group[group]) for group in groups)])
        lines.append(["accuracy", *(f"{accuracy[group]:.1%}" for group in groups)])
    return lines


def _pair(row: Row) -> str:
    assert row.cosine is not None
    assert row.top1 is not None
    return f"{row.cosine.mean:.3f} / {row.top1:.1%}"


def _recipes(recipes: Mapping[str, Any]) -> list[list[str]]:
    lines = [["recipe", "steps", "batch", "learning rate", "average"]]
    for name, recipe in recipes.items():
        training = recipe["training"]
        average = "" if training["ema_decay"] is None else f"{training['ema_decay']:g}"
        rate = f"{training['learning_rate']:g}"
        lines.append([f"`{name}.toml`", str(training["steps"]), str(training["batch_size"]), rate, average])
    return lines
