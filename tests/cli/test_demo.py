"""`featinv demo`, with stand-ins for the built-in engines."""

from __future__ import annotations

import pytest
from PIL import Image

from featinv_fast.demo import builtin

QUICK = ("--backend", "torch", "--threads", "1", "--quiet")


def test_a_picture_and_a_table(featinv, installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = featinv("demo", "--count", "4", *QUICK)
    assert answer.code == 0
    head, _, *lines = answer.out.splitlines()
    assert head.split("|")[1].strip() == "setting"
    assert [line.split("|")[1].strip() for line in lines] == ["DDIM-5", "LCM-2", "unrelated image (floor)"]
    assert "demo.png" in answer.err
    with Image.open("demo.png") as picture:
        # Two strips of three panels side by side, two below each other.
        assert picture.width == 2 * 16 + 2 * (3 * 128 + 2 * 6) + 28
        assert picture.height > 2 * 128
        assert len(picture.convert("RGB").getcolors(2**24)) > 1000


def test_json_has_every_scene(featinv, installed, tmp_path):
    out = tmp_path / "new" / "picture.webp"
    answer = featinv("demo", "--count", "2", "--first", "7", "--out", out, "--json", *QUICK)
    assert (answer.code, answer.err) == (0, "")
    assert answer.json["picture"] == str(out)
    assert [(row["label"], row["n"]) for row in answer.json["rows"]] == [("DDIM-5", 2), ("LCM-2", 2), ("unrelated", 2)]
    assert [(image["label"], image["seed"]) for image in answer.json["images"]] == [
        ("DDIM-5", 0),
        ("DDIM-5", 1),
        ("LCM-2", 0),
        ("LCM-2", 1),
    ]
    assert out.stat().st_size > 1000


def test_an_earlier_picture_is_kept(featinv, installed, tmp_path):
    out = tmp_path / "demo.png"
    out.write_bytes(b"mine")
    answer = featinv("demo", "--count", "1", "--out", out, *QUICK)
    assert (answer.code, out.read_bytes()) == (2, b"mine")
    assert "--force" in answer.err
    assert featinv("demo", "--count", "1", "--out", out, "--force", *QUICK).code == 0
    assert out.read_bytes() != b"mine"


@pytest.mark.parametrize("arguments", [("--count", "0"), ("--out", "demo.txt"), ("--first", "-1")])
def test_wrong_usage(featinv, installed, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert featinv("demo", *arguments, *QUICK).code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_engines_says_so(featinv, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "nowhere")
    answer = featinv("demo", "--out", tmp_path / "demo.png", *QUICK)
    assert answer.code == 1
    assert "install featinv-fast again" in answer.err
