import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from featinv_fast.demo import LENGTHS, SceneDataset, Split, Style
from featinv_fast.errors import ArgumentError, ArgumentTypeError

CONCEPT_NAMES = {"shape", "pattern", "colour", "cell", "size", "background"}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_batches_carry_everything():
    batch = SceneDataset("validation", masks=True).batch([4, 0, 9])
    assert batch.keys() == {"images", "labels", "masks"} | CONCEPT_NAMES
    assert (batch["images"].shape, batch["images"].dtype) == ((3, 64, 64, 3), np.uint8)
    assert (batch["labels"].shape, batch["labels"].dtype) == ((3,), np.int64)
    assert (batch["masks"].shape, batch["masks"].dtype) == ((3, 3, 64, 64), np.bool_)
    assert "masks" not in SceneDataset("validation").batch([0])


def test_items_are_rows_of_batches():
    dataset = SceneDataset(Split.TEST, size=32, seed=2, style=Style.LINE_DRAWING)
    batch = dataset.batch(np.array([7, 7, 1]))
    assert_same(dataset[[7, 7, 1]], batch)
    assert_same(dataset[np.array([7, 7, 1])], batch)
    for row, index in enumerate((7, np.int64(7), 1)):
        assert_same(dataset[index], {name: array[row] for name, array in batch.items()})


def test_a_longer_data_set_begins_with_the_same_scenes():
    assert_same(SceneDataset("train", length=5).batch(range(5)), SceneDataset("train", length=2**40).batch(range(5)))


def test_splits_and_seeds_differ():
    images = [SceneDataset(split, seed=seed)[0]["images"] for split in Split for seed in (0, 1)]
    assert len({image.tobytes() for image in images}) == 6


def test_lengths():
    assert {split: len(SceneDataset(split)) for split in Split} == LENGTHS
    assert len(SceneDataset(length=0)) == 0
    assert sum(1 for _ in SceneDataset(length=3)) == 3


@pytest.mark.parametrize("index", [3, -1, [0, 3], [-1]])
def test_indices_outside_are_refused(index):
    with pytest.raises(IndexError, match="3"):
        SceneDataset(length=3)[index]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"split": "dev"}, ArgumentError),
        ({"size": 8}, ArgumentError),
        ({"style": "oil"}, ArgumentError),
        ({"seed": 0.5}, ArgumentTypeError),
        ({"length": -1}, ArgumentError),
    ],
)
def test_bad_arguments_are_refused_at_once(options, error):
    with pytest.raises(error, match="expected:"):
        SceneDataset(**options)


def test_torch_loads_whole_batches():
    dataset = SceneDataset(length=10)
    loader = DataLoader(dataset, sampler=BatchSampler(SequentialSampler(dataset), 4, False), batch_size=None)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert isinstance(batches[0]["images"], torch.Tensor)
    images = torch.cat([batch["images"] for batch in batches])
    np.testing.assert_array_equal(images.numpy(), dataset.batch(range(10))["images"])


def test_torch_loads_items():
    (batch,) = DataLoader(SceneDataset(length=4), batch_size=4)
    np.testing.assert_array_equal(batch["images"].numpy(), SceneDataset().batch(range(4))["images"])
    assert batch["labels"].dtype == torch.int64


def test_workers_get_the_same_data_set():
    dataset = SceneDataset("test", size=32, masks=True)
    assert_same(pickle.loads(pickle.dumps(dataset))[3], dataset[3])
