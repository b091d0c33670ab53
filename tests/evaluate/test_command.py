import dataclasses
import json

import pytest
from PIL import Image

from featinv_fast.commands import evaluate as command
from featinv_fast.commands.evaluate import EvaluateOptions, evaluate_folder
from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ArgumentError, MissingPackageError
from featinv_fast.evaluate import FewSamplesWarning, Setting

SPEC = FeatureSpec(backbone="test_convnext", layer="final", channels=64, height=2, width=2, input_size=64)


@pytest.fixture
def folder(tmp_path, scenes):
    for number, scene in enumerate(scenes):
        path = tmp_path / "images" / ("a", "b")[number // 6] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.save(path)
    return tmp_path / "images"


@pytest.fixture
def runtime(make_runtime):
    return make_runtime(features=SPEC)


def options(folder, tmp_path, **changes):
    given = {
        "out": tmp_path / "out",
        "images": folder,
        "settings": (Setting(steps=2), Setting(steps=4)),
        "backbone_weights": "random:0",
        "plot": False,
        "progress": False,
    }
    return EvaluateOptions(**{**given, **changes})


def run(runtime, given):
    with pytest.warns(FewSamplesWarning):
        return evaluate_folder(runtime, given)


def test_everything_is_written(runtime, folder, tmp_path):
    pytest.importorskip("matplotlib")
    report, unreadable = run(runtime, options(folder, tmp_path, group_by_folder=True, pictures=2, plot=True))
    assert unreadable == {}
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "images.jsonl",
        "page.html",
        "page.png",
        "plot.png",
        "report.json",
    ]
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [(row["group"], row["n"]) for row in rows[:3]] == [(None, 11), ("a", 6), ("b", 5)]
    assert rows[0]["distances"].keys() == {"frechet_distance_test_convnext"}
    assert [picture.name for picture in report.pictures] == ["a/0.png", "a/1.png", "b/6.png", "b/7.png"]
    with Image.open(out / "page.png") as page:
        assert page.width == 2 * 16 + 3 * 128 + 2 * 6


def test_a_limit_takes_images_from_the_whole_folder(runtime, folder, tmp_path):
    report, _ = run(runtime, options(folder, tmp_path, limit=4))
    assert [item.name for item in report.items[:4]] == ["a/0.png", "a/2.png", "a/5.png", "b/8.png"]
    assert {row.n for row in report.rows if row.kind == "engine"} == {4}


def test_unreadable_images_are_named_and_the_others_evaluated(runtime, folder, tmp_path):
    (folder / "a" / "2.png").write_bytes(b"no image")
    report, unreadable = run(runtime, options(folder, tmp_path))
    assert list(unreadable) == ["a/2.png"]
    assert "cannot be read" in unreadable["a/2.png"]
    assert report.row("DDIM-2 g=1.75").n == 10


def test_a_run_without_any_reconstruction_still_has_its_report(make_runtime, folder, tmp_path):
    runtime = make_runtime(features=SPEC, failing=tuple(range(11)))
    report, _ = evaluate_folder(runtime, options(folder, tmp_path, plot=True))
    assert report.row("DDIM-2 g=1.75").failed == 11
    assert not (tmp_path / "out" / "plot.png").exists()
    assert (tmp_path / "out" / "page.png").exists()


def test_an_engine_of_pooled_features_gets_vectors(runtime, folder, tmp_path):
    runtime.features = dataclasses.replace(SPEC, layout=FeatureLayout.POOLED, height=1, width=1)
    report, _ = run(runtime, options(folder, tmp_path))
    assert runtime.calls[0]["features"].shape == (11, 64)
    assert report.rows[0].judge == "test_convnext, layer final"


def test_the_ceiling_comes_from_a_checkpoint(runtime, folder, tmp_path, golden_checkpoint):
    report, _ = run(runtime, options(folder, tmp_path, checkpoint=golden_checkpoint, limit=2))
    assert report.row("autoencoder").n == 2
    assert report.row("DDIM-4 g=1.75").share_of_ceiling > 0


def test_an_earlier_evaluation_is_not_overwritten(runtime, folder, tmp_path):
    run(runtime, options(folder, tmp_path))
    with pytest.raises(ArgumentError, match="--force"):
        options(folder, tmp_path)
    assert options(folder, tmp_path, force=True).force


def test_refusals_come_before_the_work(runtime, folder, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="limit"):
        options(folder, tmp_path, limit=0)

    def missing():
        raise MissingPackageError("plots need matplotlib")

    monkeypatch.setattr(command, "require_matplotlib", missing)
    with pytest.raises(MissingPackageError):
        options(folder, tmp_path, plot=True)
    assert options(folder, tmp_path).plot is False


def test_a12_interruption_leaves_a_report(runtime, folder, tmp_path, monkeypatch):
    invert, calls = runtime.invert, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return invert(*args, **kwargs)

    monkeypatch.setattr(runtime, "invert", interrupted)
    with pytest.raises(KeyboardInterrupt), pytest.warns(FewSamplesWarning):
        evaluate_folder(runtime, options(folder, tmp_path, batch_size=4))
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [(row["label"], row["n"]) for row in rows[:2]] == [("DDIM-2 g=1.75", 8), ("DDIM-4 g=1.75", 4)]
