"""Run folders: checkpoints that are whole or not there, logs without doubles, names."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo.files
from zoo.errors import OutputError, UsageError
from zoo.request import parse_request
from zoo.runs import AppendingCSVLogger, WholeCheckpointIO, last_checkpoint, newest_run


def save(run: Path, value: float, name: str = "last.ckpt") -> Path:
    path = run / "checkpoints" / name
    WholeCheckpointIO().save_checkpoint({"value": torch.full((1000,), value)}, path)
    return path


def value(path: Path) -> float:
    return float(WholeCheckpointIO().load_checkpoint(path)["value"][0])


def test_the_one_before_is_kept_and_taken_where_the_last_is_damaged(tmp_path: Path) -> None:
    for number in (1.0, 2.0, 3.0):
        path = save(tmp_path, number)
    previous = path.with_name("previous.ckpt")
    assert (value(path), value(previous)) == (3.0, 2.0)
    assert last_checkpoint(tmp_path) == path
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-1], content[: len(content) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged"):
            assert last_checkpoint(tmp_path) == previous
    path.unlink()
    assert last_checkpoint(tmp_path) == previous
    assert newest_run(tmp_path.parent, tmp_path.name) == tmp_path
    previous.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UsageError, match="nothing to"):
        last_checkpoint(tmp_path)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = save(tmp_path, 1.0)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "write":
        opened = Path.open

        class Full:
            def __init__(self, path: Path, mode: str) -> None:
                self.file: Any = opened(path, mode)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *error: object) -> None:
                self.file.close()

            def write(self, content: Any) -> None:
                self.file.write(content[:100])
                full()

        monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode))
    elif step == "fsync":
        monkeypatch.setattr(zoo.files.os, "fsync", full)
    else:
        replace = os.replace
        monkeypatch.setattr(
            zoo.files.os, "replace",
            lambda a, b: replace(a, b) if "previous" in str(b) else full(),
        )  # fmt: skip
    with pytest.raises(OutputError, match=r"No space left on device; .* is whole"):
        save(tmp_path, 2.0)
    monkeypatch.undo()
    assert value(path) == 1.0
    assert {p.name for p in path.parent.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_a_checkpoint_with_code_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    torch.save({"value": Path("x")}, path)
    with pytest.raises(Exception, match="Weights only load failed"):
        WholeCheckpointIO().load_checkpoint(path, weights_only=False)


def test_rows_that_come_again_and_a_row_cut_short_leave_the_log(tmp_path: Path) -> None:
    logger = AppendingCSVLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"loss": float(step)}, step)
    logger.log_metrics({"val": 9.0}, 3)
    logger.save()
    path = tmp_path / "metrics.csv"
    with path.open("a") as file:
        file.write("4.0,4")
    again = AppendingCSVLogger(tmp_path)
    again.forget_from(3)
    again.log_metrics({"loss": 33.0}, 3)
    again.save()
    assert path.read_text().splitlines() == [
        "loss,step,val", "0.0,0,", "1.0,1,", "2.0,2,", "33.0,3,"
    ]  # fmt: skip


def test_resume_takes_the_runs_own_settings_below_flags(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("method: park\nrecipe: small\nlogger: wandb\n")
    request = parse_request("fit", ["--resume", "run", "--model.lr", "1"])
    assert (request.method, request.recipe, request.logger) == ("park", "small", "wandb")
    assert request.run == "run"
    assert request.rest == ["--config", "run/config.yaml", "--model.lr", "1"]
    assert parse_request("fit", ["--resume=run", "--logger", "csv"]).logger == "csv"
    for words, said in (
        (["--resume", "none"], "no run there"),
        (["--resume", "run", "--weights", "park"], "give one"),
        (["--resume", "run", "--ckpt_path", "last"], "give one"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_request("fit", words)
    with pytest.raises(UsageError, match="continues a fit"):
        parse_request("test", ["--resume", "run"])
