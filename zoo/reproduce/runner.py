"""Runs the jobs of a table side by side, goes on with unfinished ones, writes what they gave."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.errors import UsageError, ZooError
from zoo.reproduce.children import (
    Launcher,
    Stop,
    Stopped,
    empty,
    hold,
    launch,
    read_json,
    write_json,
    write_text,
)
from zoo.reproduce.jobs import (
    Job,
    Options,
    all_needs,
    fit_words,
    hash_of,
    plan,
    section,
    test_words,
)
from zoo.reproduce.page import markdown
from zoo.reproduce.progress import Bar, Clock
from zoo.reproduce.record import epochs_seen, read_report, result
from zoo.reproduce.table import Table, Training

__all__ = ["Baseline", "RunFailed", "Runner"]

Baseline = Callable[[Training, Mapping[str, Any], Options], Mapping[str, float]]
"""(row, its data settings, options) -> metrics of the mean training pose on that row's data."""

REFRESH_S = 2.0
"""Between two looks at how far the running trainings are."""


class RunFailed(ZooError):
    """A run failed; the others go on."""


class Runner:
    """Runs a table.

    Args:
        table: what to reproduce.
        options: the flags.
        command: the command line to print and to write on the page.
        launcher: runs one ``zoo`` command; tests put their own here.
        baseline: measures the mean training pose; ``None`` leaves it out.
    """

    def __init__(
        self,
        table: Table,
        options: Options,
        command: str,
        launcher: Launcher = launch,
        baseline: Baseline | None = None,
    ) -> None:
        self.table, self.options, self.command = table, options, command
        self.launcher, self.baseline = launcher, baseline
        self.jobs = plan(table, options)
        self.stop = Stop()
        self.page = options.out / f"{table.name}.md"
        self._bar = Bar(0)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._bar.say(text)

    def finished(self, job: Job) -> bool:
        """Whether a job need not run again."""
        content = read_json(job.result or job.folder / "state.json") or {}
        if content.get("settings_hash") != job.hash:
            return False
        return job.result is not None or (bool(content.get("trained")) and job.output.exists())

    def check(self) -> None:
        """Refuses to mix runs of different settings.

        Raises:
            UsageError: a result or a run folder was made with other settings, and no ``--redo``.
        """
        if self.options.redo:
            return
        for job in self.jobs:
            for path, flag in ((job.result, "--out"), (job.folder / "state.json", "--work")):
                content = None if path is None else read_json(path)
                if content is None or content.get("settings_hash") == job.hash:
                    continue
                raise UsageError(
                    f"{path} was made with other settings ({_difference(content, job)}); "
                    f"name another {flag} folder, or replace such runs with --redo"
                )

    # ---- one job ---------------------------------------------------------------------------------

    def execute(self, job: Job) -> dict[str, Any]:
        """Trains and tests a job, or goes on with it, and writes its JSON.

        Returns:
            The content of the JSON; empty for a shared step.

        Raises:
            RunFailed: a child failed.
            Stopped: the user asked to stop.
        """
        with hold(job.folder, self.stop, self.say) as lock:
            if self.finished(job):  # another command has done it while this one waited
                return (read_json(job.result) or {}) if job.result is not None else {}
            state = self._state(job)
            if not state["trained"] and not job.training.test_of:
                self._fit(job, state, lock)
            if job.result is None:
                return {}
            self._child(job, test_words(job, self.options), lock)
            report = read_report(job.folder / "test.json")
            content = result(self.table, job, state, report, self.options)
            write_json(job.result, content)
            return content

    def _state(self, job: Job) -> dict[str, Any]:
        """What is known of an unfinished run; a new one empties the folder."""
        state = read_json(job.folder / "state.json")
        if state is None or state.get("settings_hash") != job.hash:
            empty(job.folder, keep=("lock",))
            state = {
                "settings_hash": job.hash, "settings": dict(job.settings), "trained": False,
                "fit_seconds": 0.0, "interruptions": 0, "fit_since": None,
            }  # fmt: skip
            write_json(job.folder / "state.json", state)
        return state

    def _fit(self, job: Job, state: dict[str, Any], lock: int) -> None:
        last = job.folder / "checkpoints" / "last.ckpt"
        # A checkpoint is a zip file, whose table of contents comes last: a cut one has none.
        resume = not job.training.command and zipfile.is_zipfile(last)
        if state["fit_since"] is not None:  # the command was killed and could not note the time
            if resume:
                state["fit_seconds"] += max(0.0, last.stat().st_mtime - state["fit_since"])
            state["interruptions"] += 1
        if not resume:
            empty(job.folder, keep=("lock", "state.json", "log.txt"))
            state["fit_seconds"] = 0.0
        state["fit_since"] = time.time()
        write_json(job.folder / "state.json", state)
        try:
            self._child(job, fit_words(job, self.options, resume), lock)
            if not job.training.command:
                self._check_length(job, last)
            if job.result is None and not job.output.exists():
                raise RunFailed(f"{job.name} left no {job.training.output}")
            state["trained"] = True
        except Stopped:
            state["interruptions"] += 1
            raise
        finally:
            state["fit_seconds"] += time.time() - state["fit_since"]
            state["fit_since"] = None
            write_json(job.folder / "state.json", state)

    def _check_length(self, job: Job, last: Path) -> None:
        seen, due = epochs_seen(last), job.training.epochs
        if seen == due:
            return
        if self.stop.soft.is_set():
            raise Stopped
        raise RunFailed(
            f"{job.name} trained for {seen} epochs and the table says {due}: "
            "rows would see different numbers of images"
        )

    def _child(self, job: Job, words: Sequence[str], lock: int) -> None:
        if self.stop.soft.is_set():
            raise Stopped
        log = job.folder / "log.txt"
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ zoo {shlex.join(words)}\n")
        start = log.stat().st_size
        status = self.launcher(words, log, self.stop, lock)
        if status == 0:
            return
        if self.stop.soft.is_set():
            raise Stopped
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise RunFailed(f"{job.name} failed ({how}): {last[:300]} [whole log: {log}]")

    # ---- all jobs --------------------------------------------------------------------------------

    def run(self) -> int:
        """Runs what is not finished.

        Returns:
            The exit status: 0, or 1 if a run failed, or 130 if the command was interrupted.
        """
        self.check()
        rows = [job for job in self.jobs if job.result is not None]
        todo = [job for job in rows if not self.finished(job)]
        if len(todo) < len(rows):
            self.say(f"{len(rows) - len(todo)} finished runs are reused")
        # A shared step without an unfinished row that reads it has nothing to do.
        read = [need for row in todo for need in all_needs(row) if not self.finished(need)]
        todo = [job for job in self.jobs if job in todo or job in read]
        failures: list[str] = []
        with self._signals():
            self._baselines()
            self.write_page()
            if todo:
                failures = self._run_all(todo)
        if self.stop.soft.is_set():
            self.say(f"stopped; the same command goes on where it stopped: {self.command}")
            return 130
        for failure in failures:
            print(f"zoo: error: {failure}", file=sys.stderr)
        self.say(f"results: {self.page}")
        return 1 if failures else 0

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop: the first lets children save, the second does not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: self.stop.request()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _run_all(self, todo: Sequence[Job]) -> list[str]:
        """Runs jobs in their order, as soon as a slot is free and what they read is there."""
        waiting, failed, failures = list(todo), set[Path](), list[str]()
        running: dict[Future[dict[str, Any]], Job] = {}
        total, done, looked = sum(job.result is not None for job in todo), 0, 0.0
        clock = Clock(self.options.jobs)
        for name, seeds in self.results().items():
            for content in seeds.values():
                clock.finish(name, content["fit_seconds"])
        self._bar = Bar(total)
        with ThreadPoolExecutor(self.options.jobs) as pool, self._bar as bar, self._stop_on_error():
            while running or (waiting and not self.stop.soft.is_set()):
                unfinished = {job.folder for job in (*waiting, *running.values())}
                for job in list(waiting):
                    if self.stop.soft.is_set() or len(running) >= self.options.jobs:
                        break
                    needs = {need.folder: need.name for need in job.needs}
                    broken = [name for folder, name in needs.items() if folder in failed]
                    if broken:
                        waiting.remove(job)
                        failed.add(job.folder)
                        failures.append(f"{job.name} was not run: it needs {broken[0]}")
                    elif not needs.keys() & unfinished:
                        waiting.remove(job)
                        clock.start(job)
                        running[pool.submit(self.execute, job)] = job
                for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        content = future.result()
                    except Stopped:
                        continue
                    except (ZooError, OSError) as error:
                        failed.add(job.folder)
                        failures.append(str(error))
                        bar.say(f"failed: {error}")
                        continue
                    if job.result is None:
                        bar.say(f"{job.name}: done")
                        continue
                    done += 1
                    clock.finish(job.training.name, content["fit_seconds"])
                    self.write_page()
                    line = f"[{done}/{total}] {job.name}: {self._summary(content)}"
                    left = clock.left(waiting, list(running.values()))
                    bar.say(f"{line}; {left}" if left else line)
                if time.monotonic() - looked > REFRESH_S:
                    looked = time.monotonic()
                    shares = [clock.share(job) for job in running.values()]
                    bar.update(done + sum(shares), clock.left(waiting, list(running.values())))
        self._bar = Bar(0)
        return failures

    @contextmanager
    def _stop_on_error(self) -> Iterator[None]:
        """Ends the children if something unforeseen ends the loop that waits for them."""
        try:
            yield
        except BaseException:
            self.stop.request()
            raise

    def _summary(self, content: Mapping[str, Any]) -> str:
        metrics = content["metrics"]
        known = [m for m in self.table.metrics if metrics.get(m) is not None]
        numbers = [f"{m} {metrics[m]:.2f}" for m in known]
        return f"{', '.join(numbers)} in {content['fit_seconds'] / 60:.1f} min"

    # ---- what comes out --------------------------------------------------------------------------

    def results(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Finished runs with the present settings, of all rows and of other seeds too."""
        seeds = {*self.options.seeds}
        for path in (self.options.out / self.table.name).glob("*-seed*.json"):
            number = path.stem.rpartition("-seed")[2]
            if number.isdigit():
                seeds.add(int(number))
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for job in plan(self.table, replace(self.options, seeds=tuple(sorted(seeds)), rows=())):
            content = read_json(job.result) if job.result is not None else None
            if content is not None and content.get("settings_hash") == job.hash:
                found.setdefault(job.training.name, {})[job.seed] = content
        return found

    def write_page(self) -> None:
        """Writes the Markdown page from the finished runs."""
        results = self.results()
        seeds = {*self.options.seeds, *(s for runs in results.values() for s in runs)}
        planned = len(seeds) * len(self.table.rows)
        means = {s: b for s in sorted(seeds) if (b := self._stored_baseline(s)) is not None}
        write_text(self.page, markdown(self.table, results, self.command, planned, means))

    def _baseline_file(self, seed: int) -> tuple[Job, Path, str]:
        """The row on whose data a seed's mean pose is measured, its file, a hash of the data."""
        jobs = plan(self.table, replace(self.options, seeds=(seed,), rows=()))
        job = next(job for job in jobs if job.result is not None)
        keys = ("recipe_settings", "dataset", "data", "mocap_sha256", "seed")
        digest = hash_of({key: job.settings[key] for key in keys})
        return job, self.options.out / self.table.name / f"mean-pose-seed{seed}.json", digest

    def _stored_baseline(self, seed: int) -> Mapping[str, float] | None:
        _, path, digest = self._baseline_file(seed)
        content = read_json(path) or {}
        return content["metrics"] if content.get("settings_hash") == digest else None

    def _baselines(self) -> None:
        for seed in self.options.seeds:
            if self.baseline is None or self.stop.soft.is_set():
                return
            if self._stored_baseline(seed) is not None:
                continue
            job, path, digest = self._baseline_file(seed)
            try:
                metrics = self.baseline(job.training, section(job, "data"), self.options)
            except ZooError as error:
                self.say(f"the mean training pose was not measured: {error}")
                return
            write_json(path, {"settings_hash": digest, "seed": seed, "metrics": dict(metrics)})


def _difference(content: Mapping[str, Any], job: Job) -> str:
    """The first setting that differs, such as ``epochs 3, now 4``."""
    old, new = content.get("settings") or {}, job.settings
    for key in new:
        was, now = old.get(key), new[key]
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            part = next(k for k in {**was, **now} if was.get(k) != now.get(k))
            return f"{key}.{part} {was.get(part)!r}, now {now.get(part)!r}"[:200]
        return f"{key} {was!r}, now {now!r}"[:200]
    return "unknown ones"
