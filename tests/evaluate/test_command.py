import dataclasses
import json
import os

import pytest
from PIL import Image

from featinv_fast.commands import evaluate as command
from featinv_fast.commands import evaluate_options
from featinv_fast.commands.evaluate import evaluate_folder
from featinv_fast.commands.evaluate_options import EvaluateOptions
from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ArgumentError, LockedError, MissingPackageError, OutOfMemoryError, OutputExistsError
from featinv_fast.evaluate import FewSamplesWarning, Setting, html_page, picture_page
from featinv_fast.jobs.ledger import open_ledger

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
        "ledger.jsonl",
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

    monkeypatch.setattr(evaluate_options, "require_matplotlib", missing)
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


@pytest.fixture
def stopping(runtime, monkeypatch):
    """`stopping(number, error)`: the runtime raises `error` in its call of that number; returns the list of calls."""
    invert = runtime.invert

    def install(number, error=None):
        calls = []

        def counted(*arguments, **options):
            calls.append(options["seed"][0])
            if len(calls) == number:
                raise error or OutOfMemoryError("memory ran out")
            return invert(*arguments, **options)

        monkeypatch.setattr(runtime, "invert", counted)
        return calls

    return install


def tables(out):
    """Everything that does not tell the time."""
    rows = json.loads((out / "report.json").read_text())["rows"]
    kept = [{key: value for key, value in row.items() if key not in ("created", "seconds_per_image")} for row in rows]
    return kept, (out / "images.jsonl").read_bytes(), (out / "page.png").read_bytes()


@pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")  # an interruption leaves a report
@pytest.mark.parametrize("error", [OutOfMemoryError("memory ran out"), KeyboardInterrupt()])
def test_a_stopped_evaluation_goes_on_and_ends_with_the_same_tables(runtime, folder, tmp_path, stopping, error):
    run(runtime, options(folder, tmp_path, batch_size=4, out=tmp_path / "whole"))
    calls = stopping(5, error)
    with pytest.raises(type(error)):
        evaluate_folder(runtime, options(folder, tmp_path, batch_size=4))
    assert calls == [0, 0, 4, 4, 8]
    assert len(list((tmp_path / "out" / "slices").iterdir())) == 4
    calls = stopping(None)
    run(runtime, options(folder, tmp_path, batch_size=4))
    assert calls == [8, 8]
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")
    assert not (tmp_path / "out" / "slices").exists()


def test_failures_of_images_and_times_are_remembered(make_runtime, folder, tmp_path, monkeypatch):
    runtime = make_runtime(features=SPEC, failing=(1,))
    run(runtime, options(folder, tmp_path, batch_size=4, out=tmp_path / "whole"))
    monkeypatch.setattr(command.RememberedInverter, "forget", lambda _: None)
    monkeypatch.setattr(command, "FINISHED", {"finished": False})
    run(runtime, options(folder, tmp_path, batch_size=4))
    first = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    runtime.calls.clear()
    monkeypatch.setattr(command, "FINISHED", {"finished": True})
    run(runtime, options(folder, tmp_path, batch_size=4))
    assert runtime.calls == []
    again = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [row["seconds_per_image"] for row in again] == [row["seconds_per_image"] for row in first]
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_an_evaluation_that_fails_before_its_first_batch_leaves_nothing(runtime, folder, tmp_path, stopping):
    for error in (OutOfMemoryError("memory ran out"), KeyboardInterrupt()):
        stopping(1, error)
        with pytest.raises(type(error)):
            evaluate_folder(runtime, options(folder, tmp_path, out=tmp_path / "new" / "out"))
        assert not (tmp_path / "new").exists()


def test_a_stopped_evaluation_of_other_options_or_images_is_not_mixed(runtime, folder, tmp_path, stopping, scenes):
    stopping(3)
    with pytest.raises(OutOfMemoryError):
        evaluate_folder(runtime, options(folder, tmp_path, batch_size=4))
    with pytest.raises(OutputExistsError, match="seed: 1"):
        options(folder, tmp_path, batch_size=4, seed=1)
    scenes[0].save(folder / "a" / "12.png")
    with pytest.raises(OutputExistsError, match="inputs"):
        evaluate_folder(runtime, options(folder, tmp_path, batch_size=4))
    with open_ledger(tmp_path / "other", {}, work="evaluation", remedy=""), pytest.raises(LockedError):
        evaluate_folder(runtime, options(folder, tmp_path, out=tmp_path / "other"))


def test_force_removes_what_the_earlier_evaluation_wrote_and_nothing_else(runtime, folder, tmp_path):
    run(runtime, options(folder, tmp_path, pictures=2))
    (tmp_path / "out" / "notes.txt").write_text("the user's")
    run(runtime, options(folder, tmp_path, pictures=0, force=True))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "images.jsonl",
        "ledger.jsonl",
        "notes.txt",
        "page.html",
        "report.json",
    ]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "page.html").write_text("the user's")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match=r"page\.html"):
            evaluate_folder(runtime, options(folder, tmp_path, out=tmp_path / "own", force=force))
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["page.html"]


def test_results_below_the_images_are_not_evaluated(runtime, folder, tmp_path):
    for _ in range(2):
        report, _ = run(runtime, options(folder, tmp_path, out=folder / "a" / "out", force=True))
        assert report.row("DDIM-2 g=1.75").n == 11


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_text_cost_no_page(runtime, folder, tmp_path):
    odd = os.fsdecode(b"caf\xe9\n")
    (folder / "a").rename(folder / odd)
    report, _ = run(runtime, options(folder, tmp_path, group_by_folder=True))
    assert len(report.pictures) == 11
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "caf\\udce9\\n/0.png" in page
    json.dumps(json.loads((tmp_path / "out" / "report.json").read_text()), ensure_ascii=False).encode()
    # Also of reports that were made in Python.
    names = [dataclasses.replace(picture, name=odd, group=odd) for picture in report.pictures]
    report = dataclasses.replace(report, pictures=tuple(names))
    html_page(report).encode()
    picture_page(report.pictures)
