"""Run folders: where a training keeps its config, checkpoints, CSV of metrics and figures."""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from zoo.errors import OutputError, UsageError
from zoo.files import write_atomically

__all__ = [
    "AppendingCSVLogger",
    "WholeCheckpointIO",
    "check_writable",
    "last_checkpoint",
    "new_run",
    "newest_run",
    "one_line_disk_errors",
]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


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
    """``checkpoints/last.ckpt`` of a run folder, or the one before it if a disk has damaged it.

    Raises:
        UsageError: there is none.
    """
    folder = run / "checkpoints"
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    for path in found:
        if _is_whole(path):
            return path
        warnings.warn(f"{path} is damaged and is left alone", stacklevel=2)
    if found:
        raise UsageError(f"nothing to resume: {', '.join(map(str, found))} are damaged")
    raise UsageError(
        f"nothing to resume: {folder / LAST} does not exist; drop --ckpt_path to start anew"
    )


def _is_whole(path: Path) -> bool:
    """Whether all parts of a checkpoint have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def newest_run(root: Path, stem: str) -> Path:
    """The latest run called STEM or STEM-N that has a last checkpoint.

    Raises:
        UsageError: there is none.
    """
    for _, path in reversed(_existing(root, stem)):
        if any((path / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS)):
            return path
    raise UsageError(
        f"nothing to resume: no run {root / stem}* has checkpoints/last.ckpt; "
        "name its folder with --run DIR, or drop --ckpt_path to start anew"
    )


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that are whole or not there: temporary name, to the disk, rename.

    Beside a ``last.ckpt`` its predecessor is kept as ``previous.ckpt``. Reading runs no code of the
    file, whatever the caller asks for.
    """

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads tensors and plain values."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes ``checkpoint``.

        Raises:
            OutputError: the disk is full or gone; what was there before is still there.
        """
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if path.name == LAST:
            _keep(path, path.with_name(PREVIOUS))
        try:
            write_atomically(path, buffer.getbuffer(), durable=True)
        except OutputError as error:
            state = "the one before it is whole" if path.exists() else "there is none yet"
            raise OutputError(f"{error}; of checkpoints at this place, {state}") from error


def _keep(path: Path, other: Path) -> None:
    """Gives a file a second name, without a moment in which it has none."""
    temporary = path.with_name(f".{other.name}.{os.getpid()}")
    with suppress(OSError):  # no file yet, or a file system without links
        os.link(path, temporary)
        os.replace(temporary, other)
        temporary.unlink(missing_ok=True)  # still there if both were the same file


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

    def forget_from(self, step: int) -> None:
        """Drops the rows of steps that will be taken again, and a row that was cut short."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        text = path.read_text()
        rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
        if not rows or "step" not in rows[0]:
            path.unlink()
            self.metrics_keys = []
            return
        column = rows[0].index("step")
        kept = [r for r in rows[1:] if len(r) == len(rows[0]) and int(r[column]) < step]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([rows[0], *kept])
        write_atomically(path, out.getvalue().encode())


class AppendingCSVLogger(CSVLogger):
    """Lightning's CSV logger, writing ``RUN/metrics.csv`` and appending to it after a resume."""

    def __init__(self, run: str | Path) -> None:
        super().__init__(save_dir=str(run), name=None, version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of this run, made on first use; the first process's alone."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Drops the rows of that step and later ones; they will come again."""
        cast(_AppendingWriter, self.experiment).forget_from(step)


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
            f"whole checkpoints, if there were any, are in {where / 'checkpoints'}"
        ) from error
