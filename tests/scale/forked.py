"""The real command line in processes that are forked, so that the imports are paid for once.

``python tests/scale/forked.py`` reads one JSON object a line: ``argv`` of ``zoo``, ``cwd``,
``log``, ``env``, ``fault`` and ``kill_after``. It answers ``{"status": N}`` when it has ended
(negative: the signal that ended it). :class:`Forked` is the other end.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TINY = {
    "latent-ae-heatmap": (
        "--model.image_size 32 --model.crop_size 28 --model.channels [4,6,6] --model.fc [12,12,16] "
        "--model.hidden [24,20] --model.heatmap_cells 16 --model.detect_epochs 0 "
        "--model.layer_epochs 1 --model.ae_epochs 1 --model.regress_epochs 2 "
        "--model.finetune_epochs 1"
    ),
    "park": (
        "--model.image_size 32 --model.crop_size 28 --model.channels [4,6,6,6,6] "
        "--model.strides [1,1] --model.fc 12 --model.grid 4 --model.epochs 2"
    ),
}
QUIET = (
    "--data.val_samples 8 --data.bodies_per_subject 1 --gpus 0 --trainer.enable_progress_bar false "
    "--trainer.enable_model_summary false --trainer.log_every_n_steps 1"
)


def fit(method: str, run: str, *more: str) -> list[str]:
    """The command line of a small training."""
    words = ["fit", "--method", method, "--recipe", "small", "--run", run]
    return [*words, *TINY[method].split(), *QUIET.split(), *more]


# ---- in the forked process ----------------------------------------------------------------------


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_call(owner: Any, name: str, nth: int, act: Any, after: bool = False) -> None:
    """Replaces a function by one that acts when it is called for the nth time."""
    original, count = getattr(owner, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth and not after:
            act()
        result = original(*args, **kwargs)
        if count == nth and after:
            act()
        return result

    setattr(owner, name, call)


class _HalfWriting:
    """A file that takes the first half of what is written to it."""

    def __init__(self, file: IO[bytes], act: Any) -> None:
        self.file, self.act = file, act

    def __enter__(self) -> _HalfWriting:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.act()
        return 0


def _no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _break(kind: str, nth: int) -> None:
    """Prepares what shall happen at the nth step, write, validation or phase."""
    import torch

    from callbacks.phases import TrainingPhases
    from zoo.base import PoseModule

    if kind in ("write", "enospc"):
        act = _kill if kind == "write" else _no_space
        opened, count = Path.open, 0

        def half(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            file = opened(self, mode, *args, **kwargs)
            if "w" not in mode or self.suffix != ".ckpt":
                return file
            count += 1
            # A full disk stays full; a process dies once.
            return _HalfWriting(file, act) if count == nth or kind == "enospc" else file

        Path.open = half  # type: ignore[method-assign]
        return
    owner, name = {
        "step": (torch.optim.Adam, "step"),
        "batch": (PoseModule, "training_step"),
        "validation": (PoseModule, "validation_step"),
        "phase": (TrainingPhases, "_load_best"),
        "term-step": (PoseModule, "training_step"),
        "int-step": (PoseModule, "training_step"),
        "term-validation": (PoseModule, "validation_step"),
        "int-fetch": (PoseModule, "on_train_batch_start"),
    }[kind]
    number = {"term": signal.SIGTERM, "int": signal.SIGINT}.get(kind.split("-")[0], signal.SIGKILL)
    _at_call(owner, name, nth, lambda: os.kill(os.getpid(), number))


def _child(job: dict[str, Any]) -> int:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["cwd"])
    os.environ.update(job.get("env") or {})
    os.environ.pop("ZOO_RUN_FOLDER", None)
    if job.get("fault"):
        _break(*job["fault"])
    from zoo.cli import main

    return main(job["argv"])


def _quicker() -> None:
    """Fewer training poses for the statistics, and no pictures; both are tested elsewhere."""
    from callbacks.pose_figures import PoseFigures
    from datamodules.synthetic import SyntheticDataModule

    poses = SyntheticDataModule.training_poses
    SyntheticDataModule.training_poses = lambda self, count=20000: poses(self, min(count, 300))  # type: ignore[method-assign]
    PoseFigures._is_due = lambda self, trainer: False  # type: ignore[method-assign]
    PoseFigures.on_train_end = lambda self, trainer, pl_module: None  # type: ignore[method-assign]


def serve() -> None:
    """Forks a process for every line."""
    import torch

    torch.set_num_threads(1)
    import zoo.fit
    import zoo.methods.latent
    import zoo.methods.park  # noqa: F401

    _quicker()
    print("{}", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                status = _child(job)
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        if job.get("kill_after") is not None:
            time.sleep(job["kill_after"])
            os.kill(pid, signal.SIGKILL)  # until it is waited for, the number is its own
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


# ---- the other end ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    output: str


class Forked:
    """Runs ``zoo`` command lines in forked processes, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        return dict(json.loads(self._server.stdout.readline()))

    def run(
        self,
        argv: Sequence[str],
        *,
        fault: tuple[str, int] | None = None,
        kill_after: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        """Runs one command line.

        Args:
            argv: of ``zoo``.
            fault: kind and number, see ``_break``.
            kill_after: SIGKILL after so many seconds.
            env: added to the environment.
        """
        self._number += 1
        log = self.folder / f"log-{self._number}.txt"
        job = {
            "argv": list(argv), "cwd": str(self.folder), "log": str(log), "fault": fault,
            "env": dict(env or {}), "kill_after": kill_after,
        }  # fmt: skip
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Ended(self._read()["status"], log.read_text())

    def close(self) -> None:
        """Ends the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


@contextmanager
def forked(folder: Path) -> Iterator[Forked]:
    """A server for the length of a test module."""
    server = Forked(folder)
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    serve()
