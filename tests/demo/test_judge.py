"""The judge that the package ships: a network of another family, with heads of concepts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from featinv_export.demo_build.measure import judge_figures
from featinv_fast import demo
from featinv_fast.cli import main
from featinv_fast.demo import builtin
from featinv_fast.errors import CheckpointMismatchError, EngineIntegrityError, InstallationError
from featinv_fast.features import open_backbone


@pytest.fixture(scope="module")
def judge():
    return demo.judge()


def test_it_sees_what_is_said_of_it(judge):
    """All that is told of the first 128 test scenes, to what chance leaves of the figures on all."""
    scenes = demo.load_scenes(128)
    stated, found = demo.results()["judge"], judge_figures(judge, scenes)
    assert (found["backbone"], found["weights_sha256"]) == (stated["backbone"], stated["weights_sha256"])
    assert set(stated["accuracy"]) == {"class", "shape", "pattern", "colour", "size", "background"}
    for name, share in stated["accuracy"].items():
        assert found["accuracy"][name] == pytest.approx(share, abs=4 * (0.25 / 128) ** 0.5)
    # Guessing has 1 of 20 classes, 8 colours, 6 backgrounds right.
    assert found["accuracy"]["class"] > 0.5
    assert found["accuracy"]["colour"] > 0.3
    assert found["accuracy"]["background"] > 0.8


def test_its_answers_are_of_the_concepts_of_scenes(judge):
    scenes = demo.load_scenes(2)
    answers = judge.concepts(judge.preprocess([Image.fromarray(image) for image in scenes.images]))
    for name, logits in answers.items():
        slots = 1 if scenes.concepts[name].ndim == 1 else demo.MAX_OBJECTS
        assert logits.shape == (2, slots, len(demo.CONCEPTS[name]))
    maps = judge(judge.preprocess([Image.fromarray(image) for image in scenes.images]))
    assert tuple(maps.shape) == (2, judge.spec.channels, judge.spec.height, judge.spec.width)


def test_it_is_another_network_than_the_backbone_and_known_by_name(judge):
    assert judge.spec.backbone != demo.backbone_spec().backbone
    assert open_backbone("featinv_resnet").weights_sha256 == judge.weights_sha256
    assert (builtin.FOLDER / builtin.JUDGE).stat().st_size <= 4_000_000


def test_other_weights_and_missing_parts_are_refused(tmp_path, monkeypatch):
    (tmp_path / builtin.RESULTS).write_text(json.dumps({"judge": {"weights_sha256": "0" * 64}}))
    shipped = builtin.FOLDER / builtin.JUDGE
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    with pytest.raises(InstallationError, match=builtin.JUDGE):
        demo.judge()
    (tmp_path / builtin.JUDGE).write_bytes(shipped.read_bytes())
    with pytest.raises(CheckpointMismatchError, match="0000"):
        demo.judge()


def test_a_network_without_heads_is_no_judge(monkeypatch, tmp_path):
    from safetensors.torch import load_file, save_file

    own = demo.results()
    tensors = {k: v for k, v in load_file(builtin.FOLDER / builtin.JUDGE).items() if "concepts" not in k}
    save_file(tensors, tmp_path / builtin.JUDGE)
    (tmp_path / builtin.RESULTS).write_text(json.dumps(own))
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    with pytest.raises(EngineIntegrityError, match="no heads of concepts"):
        demo.judge()


@pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")
def test_reconstructions_are_judged_by_name(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number, image in enumerate(np.asarray(demo.load_scenes(6).images)):
        Image.fromarray(image).save(folder / f"{number}.png")
    words = ["--images", folder, "--judge", "featinv_resnet", "--out", tmp_path / "out", "--no-plot", "--quiet"]
    assert main(["eval", *map(str, words)]) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert {row["second_judge"] for row in rows} == {"featinv_resnet, layer final"}
    engine, floor = (next(row for row in rows if row["kind"] == kind) for kind in ("engine", "unrelated"))
    assert engine["figures"]["judge_cosine"]["mean"] > floor["figures"]["judge_cosine"]["mean"]
