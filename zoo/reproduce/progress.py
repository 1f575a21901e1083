"""How far the runs are: a bar in a terminal, plain lines elsewhere, and the time that is left."""

from __future__ import annotations

import csv
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from zoo.reproduce.jobs import Job

__all__ = ["Bar", "Clock"]


class Bar:
    """A bar with the time left in a terminal; elsewhere only the lines of :meth:`say`.

    Args:
        total: number of runs.
    """

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("runs"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, left="")

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def update(self, done: float, left: str) -> None:
        """Moves the bar to ``done`` runs (a running one counts by its share)."""
        if self._bar is not None:
            self._bar.update(self._task, completed=round(done, 2), left=left)


class Clock:
    """Estimates the time left from finished runs and from how far the running ones are.

    Args:
        slots: runs side by side.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._seconds: dict[str, list[float]] = {}
        self._started: dict[Path, float] = {}

    def start(self, job: Job) -> None:
        """A job begins now."""
        self._started[job.folder] = time.monotonic()

    def finish(self, name: str, seconds: float) -> None:
        """A run of the row ``name`` took so long."""
        self._seconds.setdefault(name, []).append(seconds)

    @staticmethod
    def share(job: Job) -> float:
        """Part of a running training that is done, by the epochs in its CSV of metrics."""
        try:
            with (job.folder / "metrics.csv").open(newline="") as file:
                epochs = [int(row["epoch"]) for row in csv.DictReader(file) if row.get("epoch")]
        except (OSError, ValueError, KeyError):
            return 0.0
        return min(0.95, epochs[-1] / job.training.epochs) if epochs else 0.0

    def left(self, waiting: Sequence[Job], running: Sequence[Job]) -> str:
        """Such as ``about 12 min left``; empty where there is nothing to go by."""
        known = {name: statistics.fmean(values) for name, values in self._seconds.items()}
        now = time.monotonic()
        spent = {job.folder: now - self._started[job.folder] for job in running}
        for job in running:
            share = self.share(job)
            if share >= 0.1:
                known.setdefault(job.training.name, spent[job.folder] / share)
        if not known or not (waiting or running):
            return ""
        mean = statistics.fmean(known.values())
        seconds = sum(known.get(job.training.name, mean) for job in waiting)
        for job in running:
            seconds += max(0.0, known.get(job.training.name, mean) - spent[job.folder])
        seconds /= max(1, min(self._slots, len(waiting) + len(running)))
        return (
            f"about {seconds / 60:.0f} min left" if seconds >= 60 else f"about {seconds:.0f} s left"
        )
