"""Run by test_interruption.py: train in children that kill themselves (signal 9) at every event that touches the disk,
and at some of the steps, then let a child finish. Prints a JSON list of [kill point, finished file's digest].

The children are forks of this process, which has imported everything by then: that would take most of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import conftest

from featinv_fast.train.settings import RateShape, TrainingConfig
from featinv_fast.train.trainer import train

CONFIG = TrainingConfig(
    steps=6,
    batch_size=3,
    accumulation=2,
    learning_rate=0.01,
    warmup_steps=2,
    rate_shape=RateShape.COSINE,
    clip_norm=1.0,
    ema_decay=0.9,
    device="cpu",
    log_every=3,
    checkpoint_every=2,
    image_every=4,
)


def child(folder: Path, point: int | None) -> None:
    """Train; die at event number `point`."""
    events = 0

    def event() -> None:
        nonlocal events
        events += 1
        if events == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function):
        def wrapped(*arguments, **options):
            event()
            result = function(*arguments, **options)
            event()
            return result

        return wrapped

    class HalfSaved:
        """The file that torch.save writes to, with an event in the middle."""

        def __init__(self, file):
            self.file = file
            self.writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes == 40:
                self.file.flush()
                event()
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    save = torch.save
    torch.save = lambda state, file: save(state, HalfSaved(file))
    os.fsync = around(os.fsync)
    Path.replace = around(Path.replace)
    Path.unlink = around(Path.unlink)
    conftest.Line.forward = around(conftest.Line.forward)
    objective = conftest.Line()
    train(objective, CONFIG, folder, progress=False)
    torch.save = save
    digest = hashlib.sha256()
    for name, tensor in sorted(objective.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    rows = [line.rsplit(",", 1)[0] for line in (folder / "log.csv").read_text().splitlines()]
    digest.update("\n".join(rows).encode())
    (folder / "result").write_text(json.dumps([digest.hexdigest(), events]))


def attempt(folder: Path, point: int | None) -> bool:
    """Whether a forked child came to the end."""
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL, status
        return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    try:
        child(folder, point)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - the child must not go on as a second parent
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)


def main(root: Path) -> None:
    """One uninterrupted run tells how many events there are; then every one of them, or a share, is a kill point."""
    train(conftest.Line(), CONFIG, root / "warm", progress=False)
    assert attempt(root / "whole", None)
    expected, events = json.loads((root / "whole" / "result").read_text())
    results = []
    for point in range(1, events + 1):
        folder = root / f"killed_{point}"
        assert not attempt(folder, point), f"event {point} of {events} never came"
        assert attempt(folder, None), f"no restart after a kill at event {point}"
        digest, _ = json.loads((folder / "result").read_text())
        leftovers = [path.name for path in folder.rglob("*.partial")]
        kept = len(list((folder / "checkpoints").iterdir()))
        results.append([point, digest == expected, leftovers, kept])
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
