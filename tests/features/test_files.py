import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from featinv_fast.config import FeatureSpec
from featinv_fast.errors import ArgumentError
from featinv_fast.features import list_images, load_features, normalise, read_image

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
SPEC = FeatureSpec(channels=3, height=2, width=2)


class Trap:
    """Unpickling it would create the file it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_npy_is_mapped_and_normalised(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    loaded = load_features(tmp_path / "a.npy")
    assert isinstance(loaded, np.memmap)
    assert np.array_equal(normalise(loaded, SPEC).numpy(), VALUES)


def test_big_endian_fortran_and_empty_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(VALUES).astype(">f8"))
    assert np.array_equal(normalise(load_features(tmp_path / "a.npy"), SPEC).numpy(), VALUES)
    np.save(tmp_path / "empty.npy", VALUES[:0])
    assert normalise(load_features(str(tmp_path / "empty.npy")), SPEC).shape == (0, 3, 2, 2)


def test_npz_with_one_array_or_the_key(tmp_path):
    np.savez(tmp_path / "one.npz", anything=VALUES)
    np.savez_compressed(tmp_path / "key.npz", features=VALUES, labels=np.arange(2))
    np.savez(tmp_path / "two.npz", first=VALUES, second=VALUES)
    assert np.array_equal(load_features(tmp_path / "one.npz"), VALUES)
    assert np.array_equal(load_features(tmp_path / "key.npz"), VALUES)
    with pytest.raises(ArgumentError, match=r"(?s)unclear.*first.*second"):
        load_features(tmp_path / "two.npz")


def test_safetensors_with_one_tensor_or_the_key(tmp_path):
    tensor = torch.from_numpy(VALUES)
    save_file({"x": tensor.bfloat16()}, tmp_path / "one.safetensors")
    save_file({"features": tensor, "labels": torch.arange(2)}, tmp_path / "key.safetensors")
    save_file({"a": tensor, "b": tensor.clone()}, tmp_path / "two.safetensors")
    assert load_features(tmp_path / "one.safetensors").dtype == torch.bfloat16
    assert torch.equal(load_features(tmp_path / "key.safetensors"), tensor)
    with pytest.raises(ArgumentError, match="unclear"):
        load_features(tmp_path / "two.safetensors")


def test_pickled_arrays_are_refused_and_never_run(tmp_path):
    sprung = tmp_path / "sprung"
    objects = np.array([Trap(sprung)], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", features=objects, allow_pickle=True)
    for name in ("renamed.npy", "renamed.npz", "renamed.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
    for path in sorted(tmp_path.glob("*.*")):
        with pytest.raises(ArgumentError, match="never loaded"):
            load_features(path)
    assert not sprung.exists()


def test_damaged_files_are_named(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    np.savez(tmp_path / "b.npz", VALUES)
    save_file({"x": torch.from_numpy(VALUES)}, tmp_path / "c.safetensors")
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b""):
            path.write_bytes(damaged)
            with pytest.raises(ArgumentError, match=path.name):
                load_features(path)


def test_files_under_another_name_are_named(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", VALUES)
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    for name in ("a.npz", "b.npy"):
        with pytest.raises(ArgumentError, match=name):
            load_features(tmp_path / name)


def test_a_damaged_member_of_an_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY garbage")
    with pytest.raises(ArgumentError, match=r"a\.npz"):
        load_features(tmp_path / "a.npz")


def test_missing_files_folders_and_other_suffixes(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    for path, reason in [
        (tmp_path / "a.pt", r"\.npy, \.npz, \.safetensors"),
        (tmp_path / "none.npy", "no such file"),
        (tmp_path, "no such file"),
    ]:
        with pytest.raises(ArgumentError, match=reason):
            load_features(path)


def test_images_are_listed_in_natural_order(tmp_path):
    names = ["img10.png", "img2.PNG", "b/1.JPEG", "b/01.jpg", "a11/x.webp", "a2/y.tif", ".hidden.png", ".git/z.png"]
    for name in [*names, "notes.txt", "b/a.npy"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert listed == ["a2/y.tif", "a11/x.webp", "b/1.JPEG", "b/01.jpg", "img2.PNG", "img10.png"]
    assert list_images(str(tmp_path / "img10.png")) == [tmp_path / "img10.png"]


def test_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path, reason in [
        (tmp_path, "no images"),
        (tmp_path / "notes.txt", "no images"),
        (tmp_path / "none", "no such folder"),
    ]:
        with pytest.raises(ArgumentError, match=reason):
            list_images(path)


def test_images_are_read_as_rgb(tmp_path):
    Image.new("RGBA", (3, 2), (10, 20, 30, 0)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (10, 20, 30))
    whole = (tmp_path / "a.png").read_bytes()
    for damaged in (whole[:40], b"", b"no image"):
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ArgumentError, match=r"a\.png"):
            read_image(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="no such file"):
        read_image(tmp_path / "none.png")
