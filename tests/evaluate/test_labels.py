"""True classes: where they come from, and the accuracy on originals and reconstructions."""

import json

import numpy as np
import pytest
import torch

from featinv_fast import demo
from featinv_fast.commands.evaluate import evaluate_folder
from featinv_fast.commands.evaluate_options import EvaluateOptions
from featinv_fast.commands.labels import read_labels
from featinv_fast.config import FeatureSpec
from featinv_fast.errors import ArgumentError, UnreadableFileError
from featinv_fast.evaluate import Example, Setting, class_numbers, evaluate
from featinv_fast.evaluate.measures.class_match import accuracy
from featinv_fast.features import Backbone

SETTING = [Setting(steps=2)]


def test_accuracy_is_that_of_topk():
    random = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(40, 9, generator=random), torch.randint(0, 9, (40,), generator=random)
    for k in (1, 5):
        expected = (logits.topk(k, dim=1).indices == targets[:, None]).any(1).double()
        assert torch.equal(accuracy(logits, targets, k), expected)
        assert 0.0 < expected.mean() < 1.0
    assert accuracy(logits[:2], torch.tensor([-1, int(logits[1].argmax())]), 1).tolist() == pytest.approx(
        [np.nan, 1.0], nan_ok=True
    )


def test_accuracy_on_originals_and_reconstructions(make_runtime, backbone, scenes):
    with torch.no_grad():
        tops = backbone.model(backbone.preprocess(scenes)).argmax(1).tolist()
    right = (0, 1, 4, 5)
    examples = [
        Example(image=scene, name=str(i), target=None if i == 10 else tops[i] if i in right else (tops[i] + 1) % 1000)
        for i, scene in enumerate(scenes)
    ]
    report = evaluate(make_runtime(), backbone, examples, SETTING, batch_size=5, samples=2)
    figures = report.row("DDIM-2 g=1.75").figures
    assert (figures["original_accuracy_top1"].mean, figures["original_accuracy_top1"].originals) == (0.4, 10)
    for item in report.items:
        if item.name == "10":
            assert not any("accuracy" in name for name in item.figures)
        else:
            assert item.figures["original_accuracy_top1"] == (int(item.name) in right)
            if int(item.name) in right:
                assert item.figures["accuracy_top1"] == item.figures["top1"]
    unlabelled = evaluate(make_runtime(), backbone, scenes[:2], SETTING).rows[0]
    assert not any("accuracy" in name for name in unlabelled.figures)


def test_classes_by_number_and_by_name(backbone):
    labels = ["282", "tiger cat", "n02123159", "Tiger_Cat", "espresso", "0"]
    assert class_numbers(backbone, labels) == [282, 282, 282, 282, 967, 0]
    with pytest.raises(ArgumentError, match=r"(?s)'1000', 'blue cat', 'crane'\].*0 to 999"):
        class_numbers(backbone, ["1000", "blue cat", "crane", "espresso"])  # "crane": a bird and a machine
    small = demo.backbone()
    assert class_numbers(small, [demo.CLASS_NAMES[3], "3"]) == [3, 3]
    own = Backbone(FeatureSpec(backbone="test_convnext", channels=64, input_size=64), weights="random:0")
    own.model.reset_classifier(7)
    assert class_numbers(own, ["6"]) == [6]
    with pytest.raises(ArgumentError, match="alphabetical"):
        class_numbers(own, ["espresso"])
    own.model.reset_classifier(0)
    with pytest.raises(ArgumentError, match="without classes"):
        class_numbers(own, ["1"])


def test_tables_of_labels(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text('\ufefflabel,name,note\n7,a/1.png,\n"tench, Tinca",2.png,x\n0,gone.png,\n', encoding="utf-8")
    assert read_labels(str(table), tmp_path, ["2.png", "a/1.png"]) == ["tench, Tinca", "7"]
    with pytest.raises(ArgumentError, match=r"1 of 2, such as \['3.png'\]"):
        read_labels(str(table), tmp_path, ["2.png", "3.png"])
    for content in (b"", b"name,class\n1.png,3\n", b"name,label\n1.png\n", b"\xff\xfe\x00", b'name,label\n"1.png'):
        table.write_bytes(content)
        with pytest.raises(UnreadableFileError, match="no table of labels"):
            read_labels(str(table), tmp_path, ["1.png"])
    assert read_labels("folders", tmp_path, ["3/1.png", "cat/2.png"]) == ["3", "cat"]
    with pytest.raises(ArgumentError, match="no folder of a class"):
        read_labels("folders", tmp_path, ["3/1.png", "2.png"])


@pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")
def test_the_command_takes_labels(make_runtime, tmp_path, scenes):
    spec = FeatureSpec(backbone="test_convnext", layer="final", channels=64, height=2, width=2, input_size=64)
    folder = tmp_path / "images"
    for number, scene in enumerate(scenes[:4]):
        path = folder / ("espresso", "282")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.save(path)
    given = {"backbone_weights": "random:0", "plot": False, "progress": False, "settings": SETTING, "images": folder}
    runtime = make_runtime(features=spec)
    with pytest.raises(UnreadableFileError):
        evaluate_folder(runtime, EvaluateOptions(out=tmp_path / "out", labels=str(folder / "282" / "1.png"), **given))
    assert not (tmp_path / "out").exists()
    report, _ = evaluate_folder(runtime, EvaluateOptions(out=tmp_path / "out", labels="folders", **given))
    assert report.rows[0].figures["original_accuracy_top5"].originals == 4
    row = json.loads((tmp_path / "out" / "report.json").read_text())["rows"][0]
    assert row["figures"]["accuracy_top1"]["mean"] == report.rows[0].figures["accuracy_top1"].mean
