from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from callback_toy import ToyLifter, loaders, trainer

from callbacks.time_left import CpuEstimate, TimeLeftBar, format_duration, remaining_work
from zoo.base import Phase


class Clock:
    """Moves on by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pace(pl.Callback):
    """A training batch takes ``batch`` s, the first one 50 s more, a validation ``val`` s."""

    def __init__(self, clock: Clock, batch: float = 2.0, val: float = 7.0) -> None:
        self.clock, self.batch, self.val, self.first = clock, batch, val, True

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.now += self.batch + 50 * self.first
        self.first = False

    def on_validation_batch_start(self, *args: Any) -> None:
        self.clock.now += self.val


class Estimates(pl.Callback):
    def __init__(self, bar: TimeLeftBar) -> None:
        self.bar = bar
        self.left: list[float | None] = []
        self.text: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.left.append(self.bar.seconds_left)
        self.text.append(self.bar.get_metrics(trainer, module).get("left"))


def run(root: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    options = {"max_epochs": 4, "enable_progress_bar": True, **options}
    made = trainer(root, *callbacks, **options)
    made.fit(ToyLifter((Phase("all", 4),)), *loaders(size=40))  # 5 batches, 1 validation batch
    return made


def test_the_bar_tells_the_time_left_of_the_whole_fit(tmp_path: Path) -> None:
    clock = Clock()
    bar = TimeLeftBar(clock=clock)
    seen = Estimates(bar)
    run(tmp_path, Pace(clock), bar, seen)
    assert len(seen.left) == 20
    # 4 epochs of 5 batches of 2 s; before the first validation its time is not known.
    assert seen.left[1] == pytest.approx(18 * 2)  # the slow first batch is forgotten
    assert seen.left[4] == pytest.approx(15 * 2)
    # Then 7 s for each of the validations to come, and batches are not charged with it.
    assert seen.left[5] == pytest.approx(14 * 2 + 14 / 5 * 7)
    assert seen.left[19] == 0
    assert seen.text[5] == "48 s"


def test_a_changed_pace_is_followed(tmp_path: Path) -> None:
    clock = Clock()
    bar, pace = TimeLeftBar(clock=clock), Pace(clock, val=0)
    seen = Estimates(bar)

    class Slower(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
            pace.batch = 2.0 if trainer.current_epoch < 2 else 10.0

    run(tmp_path, Slower(), pace, bar, seen, max_epochs=100)
    assert seen.left[-100] == pytest.approx(99 * 10, rel=0.05)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"max_epochs": 4}, [(19, 3.8), (18, 3.6)]),
        ({"max_epochs": 4, "limit_val_batches": 0}, [(19, 0), (18, 0)]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [(19, 1.9), (18, 1.8)]),
        ({"max_epochs": 4, "val_check_interval": 2}, [(19, 7.6), (18, 7.2)]),
        ({"max_epochs": -1, "max_steps": 7}, [(6, 1.2), (5, 1.0)]),
        ({"max_steps": 7, "val_check_interval": 3, "check_val_every_n_epoch": None},
         [(6, 2.0), (5, 5 / 3)]),
        ({"max_epochs": -1, "max_steps": 4, "accumulate_grad_batches": 2}, [(8, 1.6), (6, 1.2)]),
    ],
)  # fmt: skip
def test_remaining_work(tmp_path: Path, options: Any, want: Any) -> None:
    seen: list[Any] = []

    class Look(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
        ) -> None:
            seen.append(remaining_work(trainer, index + 1))

    run(tmp_path, Look(), enable_progress_bar=False, **options)
    assert seen[:2] == [pytest.approx(w) for w in want]
    assert seen[-1] == pytest.approx((0, 0))


def test_a_training_without_an_end_has_no_estimate(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            assert remaining_work(trainer, 1) is None
            trainer.should_stop = True

    bar = TimeLeftBar()
    run(tmp_path, Stop(), bar, max_epochs=-1)
    assert bar.seconds_left is None


def test_a_papers_recipe_on_a_cpu_is_announced_once(tmp_path: Path, capsys: Any) -> None:
    clock = Clock()
    told = CpuEstimate("park", "paper", clock=clock)
    run(tmp_path, Pace(clock, batch=3600, val=0), told, enable_progress_bar=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "CPU" in line]
    # 20 batches of an hour, of which 5 are over.
    assert lines == [
        "On this CPU the paper's recipe takes about 15 h 00 min (15 steps of 3.6e+03 s, "
        "validation not counted). For a laptop: zoo fit --method park --recipe small"
    ]


def test_it_is_told_above_a_progress_bar(tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, CpuEstimate("park"), TimeLeftBar(), max_epochs=2)
    assert "zoo fit --method park --recipe small" in capsys.readouterr().out


def test_other_recipes_and_short_runs_are_silent(tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, CpuEstimate("park", "small"), enable_progress_bar=False)
    run(tmp_path, CpuEstimate("park", "paper"), enable_progress_bar=False, max_steps=4)
    assert "CPU the paper" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 00 min"),
     (3540, "59 min"), (7500, "2 h 05 min"), (86400 * 3 + 3600 * 4, "3 d 4 h"),
     (86400 * 3 - 60, "3 d 0 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
