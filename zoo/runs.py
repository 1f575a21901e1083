"""Run folders: where a training keeps its config, checkpoints, CSV of metrics and figures."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from zoo.errors import OutputError, UsageError

__all__ = ["AppendingCSVLogger", "check_writable", "last_checkpoint", "new_run", "newest_run"]


def _existing(root: Path, stem: str) -> list[tuple[int, Path]]:
    """(number, folder) of the runs called STEM, STEM-2, STEM-3, ... under ``root``."""
    found = []
    for path in root.glob(f"{stem}*"):
        match = re.fullmatch(re.escape(stem) + r"(?:-(\d+))?", path.name)
        if match and path.is_dir():
            found.append((int(match[1] or 1), path))
    return sorted(found)


def new_run(root: Path, stem: str) -> Path:
    """A folder name under ``root`` that no earlier run has: STEM, then STEM-2, ..."""
    taken = _existing(root, stem)
    return root / (f"{stem}-{taken[-1][0] + 1}" if taken else stem)


def last_checkpoint(run: Path) -> Path:
    """``checkpoints/last.ckpt`` of a run folder.

    Raises:
        UsageError: there is none.
    """
    path = run / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UsageError(
            f"nothing to resume: {path} does not exist; drop --ckpt_path to start anew"
        )
    return path


def newest_run(root: Path, stem: str) -> Path:
    """The latest run called STEM or STEM-N that has a last checkpoint.

    Raises:
        UsageError: there is none.
    """
    for _, path in reversed(_existing(root, stem)):
        if (path / "checkpoints" / "last.ckpt").is_file():
            return path
    raise UsageError(
        f"nothing to resume: no run {root / stem}* has checkpoints/last.ckpt; "
        "name its folder with --run DIR, or drop --ckpt_path to start anew"
    )


def check_writable(folder: Path) -> None:
    """Creates ``folder`` and tries a file in it, so that a long job fails at once or not at all.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error


class _AppendingWriter(ExperimentWriter):
    """Keeps the rows of the run that is being resumed; Lightning's writer deletes them."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class AppendingCSVLogger(CSVLogger):
    """Lightning's CSV logger, writing ``RUN/metrics.csv`` and appending to it after a resume."""

    def __init__(self, run: str | Path) -> None:
        super().__init__(save_dir=str(run), name=None, version="")

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer of this run, made on first use."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)


@contextmanager
def one_line_disk_errors(where: Path) -> Iterator[None]:
    """Turns a full or vanished disk into one line that names the last good checkpoint's folder."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OutputError(
            f"writing to {where} failed: {error.strerror}; "
            f"the last whole checkpoint is in {where / 'checkpoints'}"
        ) from error
