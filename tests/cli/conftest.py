"""The command line in this process, and what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from featinv_fast.cli import main


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def featinv(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`featinv("invert", "--engine", path, ...)`: run the command line."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
        output = capsys.readouterr()
        return Answer(code, output.out, output.err)

    return run
