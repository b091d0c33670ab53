"""The look at every image before a training, and what is done about those that cannot be read."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from featinv_fast.errors import ArgumentError, TrainingError
from featinv_fast.train import scan as scanning
from featinv_fast.train.data import ImageFolder, open_data
from featinv_fast.train.scan import Scan
from featinv_fast.train.selection import select
from featinv_fast.train.settings import Crop, DataConfig, OnUnreadable, Split

HOUR = 3_600_000_000_000


@pytest.fixture
def folder(tmp_path):
    """Two classes of six images, all different."""
    root = tmp_path / "pictures"
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (9, 8), (i, len(name), ord(name[0]))).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def opened(monkeypatch):
    """The names of the images that were opened."""
    names, read = [], scanning.read_image

    def counting(path):
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(scanning, "read_image", counting)
    return names


@pytest.fixture
def an_hour_later(monkeypatch):
    """The clock of scans: no file is fresh any more."""
    now = scanning.time.time_ns
    monkeypatch.setattr(scanning.time, "time_ns", lambda: now() + HOUR)


def test_images_that_cannot_be_read_are_all_named_at_once(folder):
    (folder / "cats" / "2.png").write_bytes(b"no image")
    (folder / "dogs" / "5.png").write_bytes((folder / "dogs" / "5.png").read_bytes()[:40])
    (folder / "dogs" / "away.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(TrainingError, match=r"3 of 13 images in .* cannot be read") as caught:
        select(folder)
    for name in ("cats/2.png", "dogs/5.png", "dogs/away.png", "on_unreadable = 'skip'"):
        assert name in str(caught.value)


def test_they_are_skipped_where_that_is_asked_for(folder, caplog):
    whole = select(folder)
    (folder / "cats" / "2.png").write_bytes(b"no image")
    images = select(folder, on_unreadable=OnUnreadable.SKIP)
    assert list(images.skipped) == ["cats/2.png"]
    assert "1 of 12 images" in caplog.text
    assert images.class_names == ("cats", "dogs")
    assert [path for path in whole.paths if path.name != "2.png" or path.parent.name == "dogs"] == list(images.paths)
    assert list(images.labels) == [0] * 5 + [1] * 6
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match="12 of 12 images"):
        select(folder, on_unreadable=OnUnreadable.SKIP)


def test_parts_and_samples_keep_the_numbers_of_the_classes(folder):
    parts = {split: select(folder, split=split, holdout=(0.2, 0.2)) for split in Split}
    assert {split: len(images.paths) for split, images in parts.items()} == {"train": 8, "validation": 2, "test": 2}
    assert len({path for images in parts.values() for path in images.paths}) == 12
    for images in (*parts.values(), select(folder, count=2)):
        assert images.class_names == ("cats", "dogs")
        assert {images.class_names[label] for label in images.labels} == {"cats", "dogs"}
        for path, label in zip(images.paths, images.labels, strict=True):
            assert path.parent.name == images.class_names[label]


def test_the_configuration_chooses_the_part(folder, tmp_path):
    config = DataConfig(source="pictures", split=Split.TEST, holdout=(0.2, 0.4), count=2, seed=3, size=8)
    data = open_data(config, tmp_path)
    assert data.selection.paths == select(folder, split=Split.TEST, holdout=(0.2, 0.4), count=2, seed=3).paths


def test_what_is_known_is_not_opened_again(folder, tmp_path, opened, an_hour_later):
    (folder / "cats" / "0.png").write_bytes(b"no image")
    record = tmp_path / "cache" / "images.jsonl"
    options = {"on_unreadable": OnUnreadable.SKIP}
    first = select(folder, scan=Scan(folder, record), **options)
    assert len(opened) == 12
    again = select(folder, scan=Scan(folder, record), **options)
    assert (again, len(opened)) == (first, 12)
    Image.new("RGB", (9, 8), (200, 0, 0)).save(folder / "dogs" / "3.png")
    changed = select(folder, scan=Scan(folder, record), **options)
    assert opened[12:] == ["3.png"]
    assert changed.sha256() != first.sha256()


def test_a_changed_content_with_its_old_size_and_date_is_seen(folder, tmp_path, an_hour_later):
    record, path = tmp_path / "images.jsonl", folder / "cats" / "1.png"
    before, stat = select(folder, scan=Scan(folder, record)), path.stat()
    shutil.copy(folder / "cats" / "2.png", path)
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert select(folder, scan=Scan(folder, record)).sha256() != before.sha256()


def test_fresh_files_and_damaged_or_foreign_records_are_not_trusted(folder, tmp_path, opened, monkeypatch):
    record = tmp_path / "images.jsonl"
    select(folder, scan=Scan(folder, record))
    select(folder, scan=Scan(folder, record))
    assert len(opened) == 24  # written within the clock's last ticks
    now = scanning.time.time_ns
    monkeypatch.setattr(scanning.time, "time_ns", lambda: now() + HOUR)
    select(folder, scan=Scan(folder, record))
    text = record.read_text()
    for foreign in ("", "[]\n" + text.split("\n", 1)[1], "\x00", "\xff"):
        record.write_text(foreign, encoding="latin-1")
        del opened[:]
        select(folder, scan=Scan(folder, record))
        assert len(opened) == 12
        assert record.read_text() == text


def test_a_killed_scan_goes_on_where_it_was(folder, tmp_path, opened, an_hour_later, monkeypatch):
    monkeypatch.setattr(scanning, "BLOCK", 4)
    record = tmp_path / "images.jsonl"

    def killed(path):
        if path.parent.name == "dogs":
            raise KeyboardInterrupt
        return path

    counting = scanning.read_image
    monkeypatch.setattr(scanning, "read_image", killed)
    with pytest.raises(KeyboardInterrupt):
        select(folder, scan=Scan(folder, record))
    monkeypatch.setattr(scanning, "read_image", counting)
    record.write_text(record.read_text()[:-5])  # and its last row was torn
    whole = select(folder, scan=Scan(folder, record))
    assert len(opened) == 12 - 4 + 1
    assert select(folder, scan=Scan(folder, record)) == whole
    assert len(opened) == 12 - 4 + 1


def test_the_identity_is_that_of_names_and_contents_wherever_they_lie(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert select(tmp_path / "copy").sha256() == select(folder).sha256()
    (tmp_path / "copy" / "cats" / "0.png").rename(tmp_path / "copy" / "cats" / "zero.png")
    assert select(tmp_path / "copy").sha256() != select(folder).sha256()


def test_an_image_that_changes_or_goes_while_the_run_trains_ends_it_as_failed(folder):
    data = ImageFolder(select(folder), size=4, crop=Crop.CENTER)
    path, content = folder / "cats" / "0.png", (folder / "cats" / "0.png").read_bytes()
    path.write_bytes((folder / "dogs" / "0.png").read_bytes())
    with pytest.raises(TrainingError, match="not any more what it was") as caught:
        data.batch(np.array([0]))
    assert caught.value.exit_code == 1
    path.unlink()
    with pytest.raises(TrainingError, match="not any more what it was"):
        data.batch(np.array([12]))
    path.write_bytes(content)  # another date, the same content
    assert data.batch(np.array([0]))["images"].shape == (1, 4, 4, 3)


def test_odd_folders(folder, tmp_path):
    (folder / "cats" / "loop").symlink_to(folder)  # links to folders are not followed
    (folder / "dogs" / "deep" / "deeper").mkdir(parents=True)
    shutil.copy(folder / "cats" / "0.png", folder / "dogs" / "deep" / "deeper" / "copy.png")
    images = select(folder)
    assert len(images.paths) == 13
    assert images.class_names == ("cats", "dogs")
    data = ImageFolder(images, size=32)  # larger than the images
    assert data.batch(np.arange(13))["images"].shape == (13, 32, 32, 3)
    one = select(folder / "cats", split=Split.TEST, holdout=(0.2, 0.2))
    assert (one.class_names, one.labels, len(one.paths)) == ((), (), 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match="no images"):
        select(tmp_path / "empty")
