"""Damaged and disguised safetensors files: each is refused before the library sees it."""

from __future__ import annotations

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import save

from featinv_fast.checkpoints import load
from featinv_fast.checkpoints.header import check_header
from featinv_fast.errors import CheckpointCorruptError, CheckpointUnsafeError

WHOLE = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)})


def with_header(header: object, data: bytes = b"\0" * 16) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(begin: int, end: int, shape: list | None = None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_whole_files_pass(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (WHOLE, save({}), with_header({"a": entry(0, 16), "e": entry(16, 16, [0, 3])})):
        path.write_bytes(content)
        check_header(path)


def test_a_header_that_starts_like_a_pickle_passes(tmp_path):
    # 0x280 bytes of header: the file starts with the two bytes that a pickle of protocol 2 starts with.
    header = json.dumps({"a": entry(0, 16)}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header(header + b" " * (0x280 - len(header))))
    assert path.read_bytes()[:2] == b"\x80\x02"
    check_header(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (WHOLE[:5], "truncated"),
        (WHOLE[:40], "truncated"),
        (WHOLE[:-1], "truncated"),
        (WHOLE + b"\0", "trail"),
        (struct.pack("<Q", 2**62) + b"{}", "absurd length"),
        (struct.pack("<Q", 0) + b"{}", "JSON|trail"),
        (b"<html>" * 50, "absurd length"),
        (struct.pack("<Q", 60) + b"x" * 80, "not JSON"),
        (with_header(b"{" * 4000), "not JSON"),
        (with_header(b'{"a": ' * 40_000), "not JSON"),
        (with_header(b'{"\xff": 1}'), "not JSON"),
        (with_header({"a": entry(0, 12), "b": entry(8, 16)}), "overlaps"),
        (with_header({"a": entry(0, 8), "b": entry(0, 8)}), "overlaps"),
        (with_header({"a": entry(0, 4), "b": entry(8, 16)}), "unused"),
        (with_header({"a": entry(4, 16)}), "unused"),
        (with_header({"a": entry(0, 16, [3])}), "another number"),
        (with_header({"a": entry(16, 0, [4])}), "another number"),
        (with_header({"a": entry(0, 16, [-4])}), "shape"),
        (with_header({"a": entry(0, 16, [4.0])}), "shape"),
        (with_header({"a": entry(0, 16, [True])}), "shape"),
        (with_header({"a": entry(0, 16, dtype="X8")}), "unknown dtype"),
        (with_header({"a": {"dtype": "F32", "shape": [4]}}), "exactly"),
        (with_header({"a": 7}), "exactly"),
        (with_header({"__metadata__": {"k": 1}, "a": entry(0, 16)}), "metadata"),
    ],
)
def test_b2_damage_is_named(tmp_path, content, reason):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointCorruptError, match=reason) as caught:
        load(path)
    assert "damaged.safetensors" in str(caught.value)


@pytest.mark.parametrize("repeated", ["a", "dtype", "__metadata__"])
def test_b3_duplicate_keys_are_refused(tmp_path, repeated):
    tensor = json.dumps(entry(0, 16))
    header = {
        "a": f'{{"a": {tensor}, "a": {tensor}}}',
        "dtype": '{"a": {"dtype": "F16", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
        "__metadata__": f'{{"__metadata__": {{}}, "__metadata__": {{}}, "a": {tensor}}}',
    }[repeated]
    path = tmp_path / "twice.safetensors"
    path.write_bytes(with_header(header.encode()))
    with pytest.raises(CheckpointCorruptError, match=f"duplicate keys: {repeated}"):
        load(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_b1_a_pickle_named_safetensors_is_refused_and_not_run(tmp_path, form):
    path, folder = tmp_path / "model.safetensors", tmp_path / "made by code"
    content = {"a": torch.zeros(300), "b": Malicious(folder)}
    with path.open("wb") as file:
        if form == "bare":
            pickle.dump(content, file)
        else:
            torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointUnsafeError, match=r"model\.safetensors is a pickle") as caught:
        load(path)
    assert "weights_only" in str(caught.value)
    assert not folder.exists()
