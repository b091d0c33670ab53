"""Files that claim more than they have, or something else than tensors of numbers: refused in words, none unfolded."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import pytest
import torch

from featinv_fast.checkpoints import load
from featinv_fast.checkpoints.reader import read_file, read_json
from featinv_fast.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointUnsafeError,
)

ODD_TENSORS = {
    "without data": torch.empty(10**6, 10**6, device="meta"),
    "one value many times": torch.zeros(()).expand(1000, 1000),
    "one row many times": torch.zeros(1000).expand(1000, 1000),
    "overlapping windows": torch.zeros(100).as_strided((90, 10), (1, 1)),
    "sparse": torch.eye(3).to_sparse(),
    "complex": torch.zeros(3, dtype=torch.complex64),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "bare"])
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_in_a_pickle_that_are_no_plain_numbers_are_refused_by_name(tmp_path, kind, zipped):
    path = tmp_path / "x.ckpt"
    torch.save({"sound": torch.ones(2), "odd": ODD_TENSORS[kind]}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointMismatchError, match=r"dense tensors[\s\S]*odd \("):
        read_file(path)


def test_views_that_share_bytes_may_not_claim_more_than_twice_the_file(tmp_path):
    path, shared = tmp_path / "x.ckpt", torch.zeros(100_000)
    torch.save({f"a{i}": shared.view(100, 1000) for i in range(2)}, path)
    assert len(read_file(path).tensors) == 2
    torch.save({f"a{i}": shared.view(100, 1000) for i in range(30)}, path)
    with pytest.raises(CheckpointCorruptError, match="claim 12000000 bytes"):
        read_file(path)


@pytest.mark.parametrize(
    "view",
    [lambda t: t.t(), lambda t: t[::2], lambda t: t[:, 1:], lambda t: t[:0].expand(0, 20)],
    ids=["transposed", "every second row", "columns", "empty"],
)
def test_other_views_are_read(tmp_path, view):
    tensor = view(torch.arange(60.0).reshape(3, 20))
    torch.save({"a": tensor}, tmp_path / "x.ckpt")
    assert torch.equal(read_file(tmp_path / "x.ckpt").tensors["a"], tensor)


@pytest.mark.parametrize("name", [7, None, (1, 2), b"a"])
def test_names_that_are_no_text_are_refused(tmp_path, name):
    torch.save({name: torch.ones(2)}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointMismatchError, match="a name of type"):
        read_file(tmp_path / "x.ckpt")


def rezipped(path, *, compression=zipfile.ZIP_STORED, extra=b""):
    """The archive of torch at `path`, written again."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content + (extra if name.endswith("data.pkl") else b""))
    path.write_bytes(buffer.getvalue())


def test_a_compressed_archive_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.zeros(10)}, path)
    rezipped(path, compression=zipfile.ZIP_DEFLATED, extra=b"\0" * 50_000_000)
    assert path.stat().st_size < 1e6
    with pytest.raises(CheckpointCorruptError, match="compressed"):
        read_file(path)


def test_an_archive_whose_directory_claims_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.zeros(10)}, path)
    content = path.read_bytes()
    place = content.index(b"PK\x01\x02")  # the first entry of the directory: its two sizes stand 20 bytes on
    path.write_bytes(content[: place + 20] + struct.pack("<II", 2**31, 2**31) + content[place + 28 :])
    with pytest.raises(CheckpointCorruptError, match="larger than the file"):
        read_file(path)


@pytest.mark.parametrize("module", [b"__builtin__", b"builtins"])
def test_bytes_made_of_a_number_are_refused_and_not_made(tmp_path, module):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"\x80\x02c" + module + b"\nbytearray\n" + pickle.dumps((10**12,), 2)[2:-1] + b"R.")
    with pytest.raises(CheckpointUnsafeError, match="bytearray"):
        read_file(path)


def safetensors(header: object, data: bytes = b"\0" * 16) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@pytest.mark.parametrize(
    ("shape", "end"),
    [
        ([0, 2**62, 2**62], 0),
        ([2**80, 0], 0),
        ([1] * 100, 4),
        ([0] * 70, 0),
        ([2**63, 4], 16),
        ([4, -(2**63)], 16),
    ],
    ids=["overflow beside 0", "beyond 64 bits", "rank 100", "rank 70", "large", "negative"],
)
def test_shapes_that_no_tensor_has_are_refused(tmp_path, shape, end):
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    rest = {"dtype": "U8", "shape": [16 - end], "data_offsets": [end, 16]}
    path.write_bytes(safetensors({"a": entry, "b": rest}))
    with pytest.raises(
        CheckpointCorruptError, match=r"damaged: ('a'|the header is not JSON .* an integer of 25 digits)"
    ):
        read_file(path)


def test_a_header_above_the_stated_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 30_000_000) + b"{")
        file.truncate(60_000_000)
    with pytest.raises(CheckpointCorruptError, match="absurd length"):
        load(path)


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', '{"a": ' * 40 + "1" + "}" * 40, "{" * 10**6, '"\ud800"', "1e5"],
)
def test_json_with_two_meanings_or_none_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CheckpointCorruptError, match=r"config\.json is damaged"):
        read_json(path)


def test_names_that_cannot_be_shown_are_shortened_and_escaped(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"n" * 10_000: torch.ones(2), "\ud800 surrogate": torch.ones(2)}, path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    str(caught.value).encode()
    assert len(str(caught.value)) < 2000
