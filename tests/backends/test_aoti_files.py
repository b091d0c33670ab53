"""A package that changes after its engine was opened, on stand-ins that need no compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featinv_fast.backends import Request, load
from featinv_fast.backends.aoti_ import target_here
from featinv_fast.engine import EngineFolder, open_engine
from featinv_fast.errors import EngineIntegrityError

CPU = torch.device("cpu")


@pytest.fixture
def engine(tiny_engine, restage, tmp_path) -> EngineFolder:
    """The tiny engine with packages that are none, sound by its manifest."""
    graphs = open_engine(tiny_engine).graph_specs()

    def add_packages(folder: Path) -> None:
        for name in graphs:
            (folder / f"{name}.pt2").write_bytes(f"package of {name}".encode())

    return open_engine(restage(tiny_engine, tmp_path / "packages.engine", add_packages, aoti=target_here(CPU)))


@pytest.mark.parametrize("damage", ["changed", "longer", "missing"])
def test_c1_a_package_that_changes_after_the_engine_was_opened(engine, monkeypatch, damage):
    session = load(Request(engine=engine, device=CPU, trust_engine=True), "aoti")
    with pytest.raises(EngineIntegrityError, match="torch refuses"):
        session.run("time_embedding", torch.ones(2))
    package = engine.path / "decoder.pt2"
    content = package.read_bytes()
    package.unlink()
    if damage != "missing":
        package.write_bytes(content[:-1] + b"?" if damage == "changed" else content + b"\0")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_, **__: pytest.fail("torch was given it"))
    with pytest.raises(EngineIntegrityError, match=r"decoder\.pt2") as caught:
        session.run("decoder", torch.zeros(1, 4, 8, 8))
    assert "is damaged or unsafe" in caught.value.problem
