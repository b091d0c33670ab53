import dataclasses
import json

import pytest

from featinv_fast.engine import FORMAT_VERSION, FileInfo, Manifest, ParityInfo, ParityStatus
from featinv_fast.errors import ConfigError, EngineFormatError


def test_json_gives_back_the_same_manifest(manifest: Manifest) -> None:
    manifest = dataclasses.replace(manifest, files={"weights.safetensors": FileInfo(sha256="a" * 64, size=2**33)})
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_json_is_for_people_and_tools(manifest: Manifest) -> None:
    data = json.loads(manifest.to_json())
    assert data["format_version"] == FORMAT_VERSION == 3
    assert data["precision"] == "fp16"
    assert data["rewrites"] == [{"name": "constant prompts", "exactness": "exact", "note": ""}]
    assert [row["status"] for row in data["parity"]] == ["passed", "not run"]
    assert manifest.to_json().endswith(b"\n}\n")


def test_graph_specs_follow_from_the_manifest(manifest: Manifest) -> None:
    specs = manifest.graph_specs()
    assert specs["denoiser"].profile("opt")["latents"] == (4, 4, 8, 8)
    assert specs["time_embedding"].output.shape == ("steps", 96)
    assert specs["decoder"].output.shape == ("batch", 3, 16, 16)


def test_c7_a_newer_format_is_refused_naming_both_versions(manifest: Manifest) -> None:
    data = json.loads(manifest.to_json()) | {"format_version": 7, "something_new": True}
    with pytest.raises(
        EngineFormatError, match=r"newer format\n  given: format version 7\n  expected: format version 3"
    ):
        Manifest.from_json(json.dumps(data).encode())


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_format_is_to_be_exported_again(manifest: Manifest, version: int) -> None:
    data = json.loads(manifest.to_json()) | {"format_version": version}
    del data["family"]
    with pytest.raises(EngineFormatError, match=r"older format(.|\n)*remedy: export the checkpoint again"):
        Manifest.from_json(json.dumps(data).encode())


@pytest.mark.parametrize("version", [0, -1, "3", None, True, 3.5, [3]])
def test_c7_what_is_no_version_is_refused(manifest: Manifest, version: object) -> None:
    data = json.loads(manifest.to_json()) | {"format_version": version}
    with pytest.raises(EngineFormatError, match="the engine has no format"):
        Manifest.from_json(json.dumps(data).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe\xff", b"[" * 100_000, b'{"a":1,"a":2}'])
def test_what_is_not_a_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(EngineFormatError):
        Manifest.from_json(content)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": "red"}, "colour"),
        ({"name": 3}, "manifest.json.name"),
        ({"max_batch": 0}, "batch"),
        ({"precision": "fp12"}, "fp12"),
        ({"files": {"weights.safetensors": {"sha256": "abc", "size": 1}}}, "sha256"),
        ({"parity": [{"graph": "g", "backend": "b", "batch": 1, "status": "passed"}]}, "without its numbers"),
    ],
)
def test_unknown_and_bad_keys_are_named(manifest: Manifest, change: dict[str, object], named: str) -> None:
    data = json.loads(manifest.to_json()) | change
    with pytest.raises(EngineFormatError, match=named):
        Manifest.from_json(json.dumps(data).encode())


def test_nan_is_neither_written_nor_read(manifest: Manifest) -> None:
    nan = dataclasses.replace(manifest, features=dataclasses.replace(manifest.features, absolute_max=float("nan")))
    with pytest.raises(ConfigError, match="finite numbers"):
        nan.to_json()
    content = manifest.to_json().replace(b'"absolute_max": null', b'"absolute_max": NaN')
    with pytest.raises(EngineFormatError, match="NaN is not JSON"):
        Manifest.from_json(content)


def parity(**changes: object) -> ParityInfo:
    fields = {"status": ParityStatus.PASSED, "max_abs": 1e-6, "relative": 1e-7, "tolerance": 2e-5}
    return ParityInfo(graph="denoiser", backend="torch", batch=1, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("relative", [3e-5, float("nan"), float("inf"), None])
def test_a_missed_parity_cannot_be_called_passed(relative: float | None) -> None:
    assert parity().relative == 1e-7
    with pytest.raises(ConfigError, match=r"the parity of denoiser|bad value for ParityInfo"):
        parity(relative=relative)
    with pytest.raises(ConfigError, match=r"the parity of denoiser|bad value for ParityInfo"):
        parity(max_abs=relative if relative != 3e-5 else float("nan"))


def test_a_parity_that_was_not_run_says_why() -> None:
    with pytest.raises(ConfigError, match="no stated reason"):
        parity(status=ParityStatus.NOT_RUN)
    assert parity(status=ParityStatus.NOT_RUN, reason="no GPU").reason == "no GPU"
