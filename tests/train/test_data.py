"""Images for training: crops and flips that follow from the draw, labels, and what may be kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from featinv_fast.errors import ArgumentError, LockedError
from featinv_fast.features import center_crop
from featinv_fast.train import cache, data
from featinv_fast.train.data import ImageFolder, batch_of, identity, open_data, random_square, repeats
from featinv_fast.train.images import to_pixels, to_signed
from featinv_fast.train.selection import select
from featinv_fast.train.settings import Crop, DataConfig


def test_a_folder_of_classes(pictures):
    folder = ImageFolder(select(pictures), size=16, crop=Crop.CENTER)
    assert (len(folder), folder.selection.class_names) == (5, ("cats", "dogs"))
    batch = folder.batch(np.array([4, 0, 5]))
    assert batch["labels"].tolist() == [1, 0, 0]
    assert np.array_equal(batch["images"][1], batch["images"][2])
    expected = center_crop(Image.open(pictures / "dogs" / "1.png"), 16)
    assert np.array_equal(batch["images"][0], np.asarray(expected))


def test_images_outside_of_classes_have_no_labels(pictures):
    folder = ImageFolder(select(pictures / "cats"), size=8)
    assert folder.selection.class_names == ()
    assert "labels" not in folder.batch(np.array([0]))


def test_random_crops_follow_from_seed_and_draw(pictures):
    folder = ImageFolder(select(pictures), size=16, seed=1)
    one = folder.batch(np.array([0, 1, 5]))["images"]
    assert np.array_equal(folder.batch(np.array([5, 0]))["images"], one[[2, 0]])
    assert not np.array_equal(one[0], one[2])  # the same image in the next pass
    assert not np.array_equal(ImageFolder(select(pictures), size=16, seed=2).batch(np.array([0]))["images"][0], one[0])


def test_crops_have_the_areas_and_ratios_of_random_resized_crop():
    random = np.random.default_rng(0)
    boxes = np.array([data._random_box(300, 200, random) for _ in range(4000)])
    left, top, width, height = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 300).all()
    assert (top + height <= 200).all()
    area, ratio = width * height / 60_000, width / height
    assert 0.07 < area.min() < 0.1
    assert area.max() > 0.8
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    # A crop of the whole of a long strip is impossible: the largest allowed one in its middle.
    assert data._random_box(1000, 10, np.random.default_rng(1)) == (493, 0, 13, 10)


def test_crops_agree_with_torchvisions(pictures):
    from torchvision.transforms import functional as F

    image = Image.open(pictures / "cats" / "1.png").convert("RGB")
    left, top, width, height = data._random_box(*image.size, np.random.default_rng(3))
    expected = np.asarray(F.resized_crop(image, top, left, height, width, [20, 20]))
    assert np.array_equal(random_square(image, 20, (0, 0), np.random.default_rng(3)), expected)


def test_flips():
    pixels = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3)
    image = Image.fromarray(pixels)
    plain, horizontal, vertical = (
        random_square(image, 16, flips, np.random.default_rng(2)) for flips in ((0, 0), (1, 0), (0, 1))
    )
    assert np.array_equal(horizontal, plain[:, ::-1])
    assert np.array_equal(vertical, plain[::-1])


def test_what_repeats_may_be_kept(pictures):
    images = select(pictures)
    assert not repeats(ImageFolder(images, size=8))
    assert repeats(ImageFolder(images, size=8, crop=Crop.CENTER))


class Fixed:
    """A data set by the protocol alone."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        assert indices.max() < len(self)
        return {"images": self.images[indices]}


def test_any_data_will_do():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(batch_of(Fixed(images), np.array([2, 4]))["images"], images[[2, 1]])
    for wrong in (images.astype(np.float32), images[..., :1], images[0]):
        with pytest.raises(ArgumentError, match="something else than images"):
            batch_of(Fixed(wrong), np.array([0]))


def test_the_scenes_of_the_synthetic_world(tmp_path):
    scenes = open_data(DataConfig(source="scenes", count=7, size=64), tmp_path)
    batch = batch_of(scenes, np.array([6, 7]))
    assert len(scenes) == 7
    assert batch["images"].shape == (2, 64, 64, 3)
    assert batch["labels"].dtype == np.int64
    assert np.array_equal(batch["images"][1], scenes.batch(np.array([0]))["images"][0])


def test_the_identity_tells_changed_pixels(tmp_path):
    config = DataConfig(source="pictures", size=8, crop=Crop.CENTER)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "a.png")
    before = identity(open_data(config, tmp_path), config)
    assert identity(open_data(config, tmp_path), config) == before
    Image.new("RGB", (8, 8), (9, 9, 8)).save(folder / "a.png")
    assert identity(open_data(config, tmp_path), config) != before
    json.dumps(before)


def test_pixels():
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_pixels(images, 8) * 255, images.permute(0, 3, 1, 2).float())
    assert to_signed(images, 4).shape == (2, 3, 4, 4)
    torch.testing.assert_close(to_signed(images, 8), images.permute(0, 3, 1, 2) / 127.5 - 1)
    flat = torch.full((1, 9, 9, 3), 51, dtype=torch.uint8)
    torch.testing.assert_close(to_pixels(flat, 5), torch.full((1, 3, 5, 5), 0.2))


def computed(calls):
    def compute(indices):
        calls.append(len(indices))
        return {"a": torch.from_numpy(indices)[:, None].float(), "b": torch.ones(len(indices), 2, 2)}

    return compute


def test_results_are_computed_once_and_found_again(tmp_path):
    calls = []
    options = {"folder": tmp_path, "identity": {"x": 1}, "progress": False}
    for _ in range(2):
        arrays = cache.precompute(computed(calls), 100, **options)
        rows = cache.rows(arrays, np.array([99, 3]))
        assert rows["a"].tolist() == [[99.0], [3.0]]
        assert rows["b"].shape == (2, 2, 2)
    assert calls == [64, 36]
    cache.precompute(computed(calls), 100, **(options | {"identity": {"x": 2}}))
    assert len(calls) == 4
    cache.precompute(computed(calls), 100, **(options | {"folder": None}))
    assert len(calls) == 6
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_computation_goes_on_where_it_was(tmp_path):
    options = {"length": 200, "identity": {}, "progress": False}

    def broken(calls, at):
        compute = computed(calls)

        def until(indices):
            if indices[0] == at:
                raise KeyboardInterrupt
            return compute(indices)

        return until

    calls = []
    cache.precompute(computed(calls), folder=tmp_path / "whole", **options)
    assert calls == [64, 64, 64, 8]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        cache.precompute(broken(calls, 0), folder=tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()
    for at in (64, 192):
        with pytest.raises(KeyboardInterrupt):
            cache.precompute(broken(calls, at), folder=tmp_path / "cache", **options)
    cache.precompute(computed(calls), folder=tmp_path / "cache", **options)
    assert calls == [64, 64, 64, 8]
    found, expected = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "cache", tmp_path / "whole")
    )
    assert found == expected


def test_one_process_fills_a_cache(tmp_path):
    def second(indices):
        cache.precompute(computed([]), 100, folder=tmp_path, identity={}, progress=False)
        return {}

    with pytest.raises(LockedError, match="another computation is writing this folder"):
        cache.precompute(second, 100, folder=tmp_path, identity={}, progress=False)
