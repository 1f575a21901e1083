"""Child processes, and the small files that survive a kill."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import DataError, OutputError

__all__ = [
    "Launcher",
    "Stop",
    "Stopped",
    "empty",
    "hold",
    "launch",
    "read_json",
    "write_json",
    "write_text",
]

GRACE_S = 60.0
"""How long a child may take to save its checkpoint after it was asked to stop."""


class Stop:
    """Tells threads to stop: ``soft`` lets children save their state first, ``hard`` does not."""

    def __init__(self) -> None:
        self.soft, self.hard = threading.Event(), threading.Event()

    def request(self) -> None:
        """Asks once softly; every further time at once."""
        if self.soft.is_set():
            self.hard.set()
        self.soft.set()


Launcher = Callable[[Sequence[str], Path, Stop, int], int]
"""(words of a ``zoo`` command, log file, stop, lock to inherit) -> exit status of the child."""


class Stopped(Exception):
    """The user asked to stop."""


def launch(words: Sequence[str], log: Path, stop: Stop, lock: int) -> int:
    """Runs ``zoo WORDS`` as a child with one thread, its output appended to ``log``.

    The child leads a process group of its own, so that Ctrl-C reaches it through ``stop`` only. It
    inherits ``lock``: should this process be killed, the lock tells the next one that it lives on.
    """
    one_thread = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TQDM_DISABLE": "1",
    }
    with log.open("ab") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "zoo", *words],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread}, pass_fds=(lock,), start_new_session=True,
        )  # fmt: skip
    asked = 0.0
    while True:
        try:
            return child.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            if stop.soft.is_set() and not asked:
                asked = time.monotonic()
                _signal_group(child.pid, signal.SIGTERM)
            if stop.hard.is_set() or (asked and time.monotonic() - asked > GRACE_S):
                _signal_group(child.pid, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass  # it ended by itself in between


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON under a temporary name first.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file under a temporary name first, and makes its folder.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file, ``None`` if there is none.

    Raises:
        DataError: the file is not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not readable JSON ({error}); delete it to run it again"
        ) from error
    return content if isinstance(content, dict) else None


def empty(folder: Path, keep: Sequence[str]) -> None:
    """Removes what is in a folder but the names in ``keep``."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def hold(folder: Path, stop: Stop, say: Callable[[str], None]) -> Iterator[int]:
    """Locks a run folder; waits while a child that outlived a killed command still works in it.

    Yields:
        The descriptor of the lock, for children to inherit.

    Raises:
        OutputError: the folder cannot be made or written.
        Stopped: the user asked to stop while this waited.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    with file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"{folder} is in use by another process; waiting for it")
                    told = True
                if stop.soft.wait(0.2):
                    raise Stopped from None
        yield file.fileno()
