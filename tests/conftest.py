"""Seeds, one thread, no network, a clean folder a test, and the real command line."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before the first import of torch, albumentations or wandb anywhere in the session.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",
}
os.environ.update(ENVIRONMENT)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# A loaded machine is slow now and then; that is no failure of the code.
settings.register_profile("zoo", deadline=None, print_blob=True)
settings.load_profile("zoo")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):  # a unix socket
        return True
    host = str(address[0])
    return host in ("localhost", "::1", "0.0.0.0", "") or host.startswith("127.")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reaches for anything but this machine (two processes talk by loopback)."""

    def guarded(name: str) -> Callable[..., Any]:
        original = getattr(socket.socket, name)

        def call(self: socket.socket, address: Any, *rest: Any) -> Any:
            if not _is_local(address):
                raise RuntimeError(f"a test opened a connection to {address}")
            return original(self, address, *rest)

        return call

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that runs and predictions land nowhere else."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class CliResult:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str
    folder: Path


@pytest.fixture
def zoo_cli(tmp_path: Path) -> Callable[..., CliResult]:
    """Runs ``python -m zoo ARGS`` in a temporary folder.

    ``zoo_cli("fit", "--method", "park", cwd=..., timeout=..., env=...)``; ``cwd`` defaults to the
    test's own folder, ``env`` is added to the environment.
    """

    def run(
        *args: object,
        cwd: Path | None = None,
        timeout: float = 240,
        env: Mapping[str, str] | None = None,
    ) -> CliResult:
        folder = tmp_path if cwd is None else cwd
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *map(str, args)],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, "COLUMNS": "160", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return CliResult(done.returncode, done.stdout, done.stderr, folder)

    return run
