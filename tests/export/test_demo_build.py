"""The built-in engine is built from nothing, with one step of each training: whether it works, not how well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from featinv_export.demo_build import cli
from featinv_export.demo_build.build import build, train
from featinv_export.demo_build.options import BuildOptions, Stage
from featinv_fast import Runtime, demo
from featinv_fast.demo import builtin
from featinv_fast.errors import ArgumentError, ExportError
from featinv_fast.evaluate import FewSamplesWarning

QUICK = [
    *("training.steps=1", "training.batch_size=2", "training.workers=1", "training.warmup_steps=1"),
    *("training.checkpoint_every=1", "training.image_every=0", "data.count=8"),
]
pytestmark = pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")


def options(folder: Path, **changes) -> BuildOptions:
    given = {"changes": QUICK, "scenes": 3, "onnx": False, "progress": False}
    return BuildOptions(root=folder / "root", out=folder / "built", **{**given, **changes})


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with `root` and `built`."""
    folder = tmp_path_factory.mktemp("build")
    with pytest.warns(FewSamplesWarning):
        assert build(options(folder)) == folder / "built"
    return folder


def test_what_was_built_is_a_built_in_engine(built, monkeypatch):
    monkeypatch.setattr(builtin, "FOLDER", built / "built")
    scenes = demo.load_scenes(2)
    inversion = Runtime().invert(scenes.features)
    assert (inversion.flags.sampler, inversion.flags.steps, inversion.flags.precision) == ("lcm", 4, "fp32")
    assert inversion.images.shape == scenes.images.shape
    teacher = Runtime(demo.load_engine("teacher"))
    assert (teacher.info["sampling"]["sampler"], teacher.info["sampling"]["steps"]) == ("ddim", 50)
    assert teacher.engine.manifest.storage == "fp16"
    names = {path.name for path in (built / "built").iterdir()}
    assert names == {
        *("student", "teacher", "backbone.safetensors", "judge.safetensors"),
        *("results.json", "README.md", "quality.png", "pictures.jpg"),
    }


def test_the_figures_cover_what_is_claimed(built):
    results = json.loads((built / "built" / "results.json").read_text())
    runs = {(row["sampler"], row["steps"]) for row in results["samplers"]}
    assert {("ddim", 50), ("ddim", 20), ("dpm++2m", 10), ("lcm", 1), ("lcm", 4)} <= runs
    assert {row["kind"] for row in results["samplers"]} == {"engine", "autoencoder", "unrelated"}
    engines = [row for row in results["samplers"] if row["kind"] == "engine"]
    assert all(row["n"] == 3 and row["share_of_ceiling"] is not None for row in engines)
    assert [row["backbone"].endswith("(pooled)") for row in results["baselines"]] == [False, True]
    assert {row["judge"] for row in results["baselines"]} == {"featinv_convnext, layer final"}
    judged = [(row["backbone"][-5:], row["judge"][-5:], row["kind"]) for row in results["stages"]]
    assert judged == [
        ("final", "final", "engine"),
        ("final", "final", "autoencoder"),
        ("yer 1", "final", "engine"),
        ("yer 1", "yer 1", "engine"),
        ("yer 1", "yer 1", "autoencoder"),
    ]
    assert {row["judge"] for row in results["stranger"]} == {"featinv_resnet, layer final"}
    assert [(row["kind"], row["engine"]) for row in results["stranger"]] == [
        ("autoencoder", "demo teacher"),
        ("engine", "demo teacher"),
        ("engine", "demo consistency student"),
    ]
    assert all(row["share_of_ceiling"] is not None for row in results["stranger"][1:])
    assert 0 <= results["strangers_accuracy"] <= 1
    first = [(row["engine"], row["steps"], row["n"]) for row in results["first"]]
    assert first == [("demo teacher", 50, 3), ("demo consistency student", 4, 3)]
    groups = [row["group"] for row in results["robustness"]]
    assert len(groups) == 3 + 4 * 5
    assert set(groups) == set(results["accuracy"])
    assert results["parameters"]["denoiser.unet"] > 1_000_000


def test_the_card_holds_the_figures(built):
    results = json.loads((built / "built" / "results.json").read_text())
    card = (built / "built" / "README.md").read_text()
    few = next(row for row in results["samplers"] if (row["sampler"], row["steps"]) == ("lcm", 4))
    assert f"{few['cosine']['mean']:.4f}" in card
    assert "| line_drawing |" in card
    assert "| gaussian_noise |" in card
    recipes = [[cell.strip() for cell in line.split("|")[1:4]] for line in card.splitlines()]
    assert ["`controlnet.toml`", "1", "2"] in recipes  # the steps that were made, not the recipe's own
    for line in card.splitlines():
        assert "{" not in line
    with Image.open(built / "built" / "pictures.jpg") as picture:
        assert picture.width > 6 * 128


def test_what_is_there_is_not_made_again(built, monkeypatch):
    """Only the last stage runs; no checkpoint is touched."""
    assert not (built / "root" / "trajectory.safetensors").exists()  # the other student
    paths = {name: built / "root" / f"{name}.safetensors" for name in options(built).recipes}
    times = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    (built / "built" / "README.md").unlink()
    build(options(built, from_stage=Stage.INSTALL))
    assert (built / "built" / "README.md").exists()
    train(options(built))
    assert times == {name: path.stat().st_mtime_ns for name, path in paths.items()}


def test_another_student_needs_figures_of_its_own(built, tmp_path):
    with pytest.raises(ArgumentError, match="--from-stage export"):
        build(BuildOptions(root=built / "root", out=tmp_path / "out", student="trajectory", from_stage=Stage.INSTALL))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_too_large_is_refused(built, tmp_path, monkeypatch):
    monkeypatch.setattr("featinv_export.demo_build.build.LARGEST_BYTES", 1_000_000)
    with pytest.raises(ExportError, match="too large"):
        build(BuildOptions(root=built / "root", out=tmp_path / "out", from_stage=Stage.INSTALL))
    assert not (tmp_path / "out").exists()


def test_changes_reach_their_recipes():
    given = BuildOptions(root=Path("r"), changes=["training.steps=5", "base:training.steps=7", "pooled:out=a:b"])
    assert given.changes_of("base") == ["training.steps=5", "training.steps=7"]
    assert given.changes_of("pooled") == ["training.steps=5", "out=a:b"]
    assert given.changes_of("stage1") == ["training.steps=5"]


@pytest.mark.parametrize("wrong", [{"student": "pupil"}, {"scenes": 1}, {"changes": ["bass:training.steps=7"]}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ArgumentError):
        BuildOptions(root=Path("r"), **wrong)


def test_the_command_line(monkeypatch, capsys):
    given = []
    monkeypatch.setattr("featinv_export.demo_build.build.build", lambda options: given.append(options) or options.out)
    arguments = (
        "--root r --out o --from-stage export --set base:training.steps=7 --student trajectory --scenes 9 --quiet"
    )
    assert cli.main([*arguments.split(), "--no-onnx"]) == 0
    assert given == [
        BuildOptions(
            root=Path("r"),
            out=Path("o"),
            from_stage=Stage.EXPORT,
            changes=["base:training.steps=7"],
            student="trajectory",
            scenes=9,
            onnx=False,
            progress=False,
        )
    ]
    assert capsys.readouterr().out == "o\n"
    assert cli.main(["--root", "r", "--student", "pupil"]) == 2
    assert "distillation is not one of its values" in capsys.readouterr().err
