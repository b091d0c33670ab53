"""A second network beside the backbone, that judges the same images."""

import numpy as np
import pytest

from featinv_fast.commands.evaluate import evaluate_folder
from featinv_fast.commands.evaluate_options import EvaluateOptions, JudgeOptions
from featinv_fast.commands.judges import open_judge
from featinv_fast.config import FeatureSpec
from featinv_fast.errors import ArgumentError, InputNotFoundError
from featinv_fast.evaluate import Setting, evaluate, figure_cells, html_page, summary_cells

SETTING = [Setting(steps=2)]
JUDGE = JudgeOptions(name="test_resnet", layer="2", image_size=64, weights="random:5")


@pytest.fixture(scope="module")
def judge(backbone):
    return open_judge(JUDGE, backbone)


def test_the_second_judge_says_what_it_says_as_the_first(make_runtime, backbone, judge, scenes):
    both = evaluate(make_runtime(), backbone, scenes, SETTING, second_judge=judge, batch_size=5, samples=2, pictures=1)
    alone = evaluate(make_runtime(), backbone, scenes, SETTING, judge=judge, batch_size=5, samples=2)
    row, expected = both.rows[0], alone.rows[0]
    assert (row.judge, row.second_judge) == ("test_convnext, layer final", "test_resnet, layer 2")
    assert expected.second_judge is None
    by_judge = {name.removeprefix("judge_"): f.mean for name, f in row.figures.items() if name.startswith("judge_")}
    assert by_judge == pytest.approx({name: expected.figures[name].mean for name in by_judge}, abs=1e-6)
    assert by_judge.keys() == {
        "cosine", "top1", "top5", "feature_distance", "kl_divergence", "total_variation", "feature_spread"
    }  # fmt: skip
    assert by_judge["cosine"] != pytest.approx(row.figures["cosine"].mean, abs=1e-3)
    floor = both.row("unrelated").figures
    assert floor["judge_cosine"].mean < by_judge["cosine"]
    assert [line[0] for line in figure_cells(both.rows) if line[0].endswith("ge: feature cosine")] == [
        "judge: feature cosine"
    ]
    assert "and by test_resnet, layer 2 (judge)" in html_page(both)
    assert summary_cells(both.rows)[0] == summary_cells(alone.rows)[0]


def test_the_source_is_no_judge_of_itself(backbone):
    same = JudgeOptions(name="test_convnext", weights="random:0", image_size=96)
    with pytest.raises(ArgumentError, match="the judge is the backbone"):
        open_judge(same, backbone)
    assert open_judge(JudgeOptions(name="test_convnext", weights="random:0", layer="2"), backbone).spec.layer == "2"
    assert open_judge(JudgeOptions(name="test_convnext", weights="random:1"), backbone).spec.layer == "final"
    with pytest.raises(InputNotFoundError):
        JudgeOptions(name="test_resnet", weights="nowhere.pth")


@pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")
def test_the_command_has_true_classes_by_both(make_runtime, judge, tmp_path, scenes):
    spec = FeatureSpec(backbone="test_convnext", layer="final", channels=64, height=2, width=2, input_size=64)
    (tmp_path / "images").mkdir()
    for number, scene in enumerate(scenes[:4]):
        scene.save(tmp_path / "images" / f"{number}.png")
    tops = judge.features_and_logits(judge.preprocess(scenes[:4]))[1].argmax(1).tolist()
    lines = [f"{number}.png,{top if number else (top + 1) % 1000}" for number, top in enumerate(tops)]
    (tmp_path / "labels.csv").write_text("\n".join(["name,label", *lines]))
    given = EvaluateOptions(
        out=tmp_path / "out",
        images=tmp_path / "images",
        labels=str(tmp_path / "labels.csv"),
        judge=JUDGE,
        backbone_weights="random:0",
        plot=False,
        progress=False,
        settings=SETTING,
    )
    report, _ = evaluate_folder(make_runtime(features=spec), given)
    figures = report.rows[0].figures
    assert figures["judge_original_accuracy_top1"].mean == 0.75
    assert figures["original_accuracy_top1"].mean == np.mean(
        [item.figures["original_accuracy_top1"] for item in report.items]
    )
