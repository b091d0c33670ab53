import contextlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featinv_fast.config import FeatureSpec
from featinv_fast.errors import ArgumentError, FeatInvError
from featinv_fast.features import load_features, normalise, numpy_files

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
        (tmp_path, "not a file"),
    ]:
        with pytest.raises(ArgumentError, match=reason):
            load_features(path)


def npy_header(text):
    content = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000000, 2), }", "bytes in all"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }", "bytes in all"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "not plain numbers"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", "not plain numbers"),
        ("{'descr': '<f3', 'fortran_order': False, 'shape': (2,), }", "numpy does not know"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "shape is"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 1), }", "beyond"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,), }", "fortran_order is"),
        ("{'descr': '<f4', 'shape': (2,), }", "exactly"),
        ("(" * 9000, "no description"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 9 + "), }", "beyond"),
        ("x" * 20_000, "claims"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_headers_that_are_not_sound_are_refused_before_anything_is_allocated(tmp_path, suffix, text, reason):
    content = npy_header(text) + bytes(8)
    if suffix == ".npz":
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("features.npy", content)
    else:
        (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ArgumentError, match=rf"(?s)a\{suffix}.*{reason}") as caught:
        load_features(tmp_path / f"a{suffix}")
    assert caught.value.remedy


def test_an_archive_that_claims_far_more_than_it_holds_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", features=np.zeros((100, 256, 4, 4), np.float32))
    assert load_features(tmp_path / "a.npz").shape == (100, 256, 4, 4)  # small enough not to matter
    monkeypatch.setattr(numpy_files, "FREELY_EXPANDED", 2**20)
    with pytest.raises(ArgumentError, match="100 times"):
        load_features(tmp_path / "a.npz")


def test_archives_of_other_kinds_are_refused(tmp_path):
    member = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + bytes(8)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            archive.writestr("features.npy", member)
        with pytest.raises(ArgumentError, match="does not write"):
            load_features(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("features.npy", member)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("features.npy", member)
    with pytest.raises(ArgumentError, match="two arrays of one name"):
        load_features(tmp_path / "a.npz")


def test_a_tensor_that_is_named_twice_is_refused(tmp_path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = ('{"features":' + entry % (0, 4) + ',"features":' + entry % (4, 8) + "}").encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ArgumentError, match=r"a\.safetensors"):
        load_features(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_whatever_is_damaged_ends_in_one_error(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, VALUES)
    elif suffix == ".npz":
        np.savez_compressed(path, features=VALUES)
    else:
        save_file({"features": torch.from_numpy(VALUES)}, path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(whole)
        for place in random.integers(0, min(len(content), 300), random.integers(1, 5)):
            content[place] = random.choice(list(b"(){}[],'0-OV9\x00\xff"))
        path.write_bytes(content)
        with contextlib.suppress(FeatInvError):
            normalise(load_features(path), SPEC)
