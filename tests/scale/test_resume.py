"""Trainings that are killed, stopped or run out of disk go on as if nothing had happened."""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scale.forked import Ended, Forked, fit, forked

pytestmark = pytest.mark.slow

DATA = ("--data.train_samples", "48", "--data.batch_size", "8")
EPOCHS, BATCHES = 6, 6


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    with forked(tmp_path_factory.mktemp("runs")) as server:
        yield server


def last(zoo: Forked, run: str) -> dict[str, Any]:
    path = zoo.folder / run / "checkpoints" / "last.ckpt"
    return dict(torch.load(path, weights_only=True))


def same(a: Any, b: Any) -> bool:
    """Equality of nested containers, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def rows(zoo: Forked, run: str) -> list[dict[str, str]]:
    with (zoo.folder / run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(zoo: Forked) -> tuple[dict[str, Any], float]:
    """The training that nobody disturbs, and the seconds it takes."""
    start = time.monotonic()
    done = zoo.run(fit("latent-ae-heatmap", "whole", *DATA))
    assert done.status == 0, done.output
    return last(zoo, "whole"), time.monotonic() - start


def check_equal(zoo: Forked, run: str, whole: dict[str, Any]) -> None:
    end = last(zoo, run)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(end[key], whole[key]), key
    best = [torch.load(zoo.folder / r / "checkpoints" / "best.ckpt", weights_only=True)
            for r in (run, "whole")]  # fmt: skip
    assert same(best[0]["state_dict"], best[1]["state_dict"])
    losses = {
        r: {row["step"]: row["train/loss"] for row in rows(zoo, r) if row["train/loss"]}
        for r in (run, "whole")
    }
    assert losses[run].items() <= losses["whole"].items()  # no step was taken with other data
    steps = [row["step"] for row in rows(zoo, run) if row["train/loss"]]
    assert len(steps) == len(set(steps))  # and none is in the log twice
    assert not list((zoo.folder / run / "checkpoints").glob(".*"))


def go_on(zoo: Forked, run: str, **trouble: Any) -> Ended:
    words = ["fit", "--resume", run, "--checkpoint_minutes", "0"]
    return zoo.run(words, **trouble)


def test_twenty_kills_change_nothing(zoo: Forked, whole: tuple[dict[str, Any], float]) -> None:
    """SIGKILL amid steps, half-written checkpoints, validation, between stages, and anywhere."""
    end, seconds = whole
    rng = random.Random(7)
    kinds = ["step", "batch", "write", "validation", "phase", "anywhere"]
    killed = {kind: 0 for kind in kinds}
    run, number = "", 0
    fresh = True
    while sum(killed.values()) < 20:
        kind = kinds[sum(killed.values()) % len(kinds)]
        if fresh:
            number += 1
            run, fresh = f"killed-{number}", False
            words = fit("latent-ae-heatmap", run, *DATA, "--checkpoint_minutes", "0")
        else:
            words = ["fit", "--resume", run, "--checkpoint_minutes", "0"]
        if kind == "anywhere":
            ended = zoo.run(words, kill_after=rng.uniform(0.1, 0.9) * seconds)
        else:
            nth = 1 if kind == "phase" else rng.randint(1, 8)
            ended = zoo.run(words, fault=(kind, nth))
        assert ended.status in (0, -9), ended.output
        if ended.status == -9:
            killed[kind] += 1
            config = zoo.folder / run / "config.yaml"
            fresh = not config.exists()  # killed before there was anything to resume
        else:
            check_equal(zoo, run, end)
            fresh = True
    if not fresh:
        ended = go_on(zoo, run)
        assert ended.status == 0, ended.output
        check_equal(zoo, run, end)
    assert all(killed.values()), killed


@pytest.mark.parametrize(
    ("kind", "nth", "signum"),
    [("term-step", 9, 15), ("int-fetch", 4, 2), ("int-step", 6, 2), ("term-validation", 4, 15)],
)
def test_a_signal_saves_and_ends(
    zoo: Forked, whole: tuple[dict[str, Any], float], kind: str, nth: int, signum: int
) -> None:
    run = kind
    ended = zoo.run(fit("latent-ae-heatmap", run, *DATA), fault=(kind, nth))
    assert ended.status == 128 + signum, ended.output
    assert f"zoo fit --resume {run}" in ended.output
    assert "Traceback" not in ended.output
    amid = kind in ("term-step", "int-fetch")
    assert (last(zoo, run)["global_step"] % BATCHES != 0) == amid
    ended = zoo.run(["fit", "--resume", run])
    assert ended.status == 0, ended.output
    check_equal(zoo, run, whole[0])


def test_a_full_disk_ends_with_one_line(zoo: Forked, whole: tuple[dict[str, Any], float]) -> None:
    run = "full"
    ended = zoo.run(fit("latent-ae-heatmap", run, *DATA), fault=("term-step", 15))
    before = last(zoo, run)
    ended = go_on(zoo, run, fault=("enospc", 1))
    assert ended.status == 2, ended.output
    line = ended.output.strip().splitlines()[-1]
    assert line.startswith("zoo: error: cannot write")
    assert "No space left on device" in line
    assert "Traceback" not in ended.output
    assert same(last(zoo, run), before)
    assert zoo.run(["fit", "--resume", run]).status == 0
    check_equal(zoo, run, whole[0])


def test_a_damaged_last_checkpoint_is_passed_over(
    zoo: Forked, whole: tuple[dict[str, Any], float]
) -> None:
    run = "damaged"
    zoo.run(fit("latent-ae-heatmap", run, *DATA), fault=("term-step", 15))
    folder = zoo.folder / run / "checkpoints"
    assert (folder / "previous.ckpt").exists()
    data = bytearray((folder / "last.ckpt").read_bytes())
    data[len(data) // 3] ^= 0xFF
    (folder / "last.ckpt").write_bytes(bytes(data))
    ended = zoo.run(["fit", "--resume", run])
    assert ended.status == 0, ended.output
    assert "damaged" in ended.output
    assert "previous.ckpt" in ended.output
    check_equal(zoo, run, whole[0])


def test_park_resumes_amid_an_epoch_with_its_random_crops(zoo: Forked, tmp_path: Path) -> None:
    """Also with workers, which prepare batches before they are asked for."""
    for workers in ("0", "1"):
        data = (*DATA, "--data.num_workers", workers)
        run = f"park-{workers}"
        done = zoo.run(fit("park", run, *data))
        assert done.status == 0, done.output
        ended = zoo.run(fit("park", f"{run}-cut", *data), fault=("term-step", 3 + BATCHES))
        assert ended.status == 143, ended.output
        ended = zoo.run(["fit", "--resume", f"{run}-cut"])
        assert ended.status == 0, ended.output
        assert same(last(zoo, f"{run}-cut")["state_dict"], last(zoo, run)["state_dict"])
    assert same(last(zoo, "park-0")["state_dict"], last(zoo, "park-1")["state_dict"])
