"""What has to run: the flags, the jobs of a table with their settings, and their command lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo.registry import get_method, split_weight_name
from zoo.reproduce.table import Table, Training

__all__ = [
    "Job",
    "Options",
    "all_needs",
    "fit_words",
    "hash_of",
    "plan",
    "section",
    "test_words",
    "with_files",
]


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    seeds: tuple[int, ...] = (0, 1, 2)
    rows: tuple[str, ...] = ()
    images: int = 0
    mocap: Path | None = None
    out: Path = Path("docs/results")
    work: Path = Path("runs/reproduce")
    jobs: int = 2
    gpus: int | None = None
    redo: bool = False


@dataclass(frozen=True)
class Job:
    """One training of one seed, with what names and decides it.

    Attributes:
        folder: of the run, below the work folder.
        result: its JSON below the results folder; ``None`` for a shared step.
        settings: everything that decides the numbers, without any path.
        needs: jobs whose output this one reads.
    """

    training: Training
    seed: int
    folder: Path
    result: Path | None
    settings: Mapping[str, Any]
    needs: tuple[Job, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``baseline seed 0``."""
        return f"{self.training.name} seed {self.seed}"

    @property
    def hash(self) -> str:
        """Of the settings, 16 hexadecimal digits."""
        return hash_of(self.settings)

    @property
    def images(self) -> int:
        """Training images that the run sees."""
        samples = int(self.settings["data"]["train_samples"])
        return samples * self.training.frames * self.training.epochs

    @property
    def output(self) -> Path:
        """What a shared step hands on."""
        return self.folder / self.training.output


def hash_of(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with any of the settings."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _file_hash(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def plan(table: Table, options: Options) -> list[Job]:
    """All jobs in the order in which they start: per seed the shared steps, then the rows.

    Every row of a seed has the same seed for weights and data and sees the same number of images.
    """
    from zoo.request import recipe_settings

    mocap = _file_hash(options.mocap)
    wanted = [row for row in table.rows if not options.rows or row.name in options.rows]
    jobs: list[Job] = []
    for seed in options.seeds:
        shared: dict[str, Job] = {}
        for training in (*table.shared, *wanted):
            record = get_method(training.method)
            recipe = recipe_settings(record, training.recipe)
            batch = {**(recipe.get("data") or {}), **training.data}.get("batch_size", 1)
            passes = training.epochs * training.frames
            images = options.images or training.images or table.images
            samples = _samples(images, passes, int(batch))
            settings: dict[str, Any] = {
                "method": training.method,
                "arguments": dict(record.args),
                "recipe": training.recipe,
                "recipe_settings": recipe,
                "dataset": training.dataset or record.data,
                "model": dict(training.model),
                "data": {**training.data, "train_samples": samples},
                "trainer": dict(training.trainer),
                "epochs": training.epochs,
                "seed": seed,
                "mocap_sha256": mocap,
                "processes": max(1, options.gpus or 1),
                "weights": training.weights,
                "shared": {name: shared[name].hash for name in training.needs},
            }
            if training.command:
                settings["command"] = list(training.command)
            if shipped := _shipped(training):
                settings["shipped_sha256"] = shipped
            if training.test_of:
                settings["test_of"] = training.test_of
            step = training in table.shared
            stem = f"{'shared-' if step else ''}{training.name}-seed{seed}"
            job = Job(
                training, seed, options.work / table.name / stem,
                None if step else options.out / table.name / f"{stem}.json",
                settings, tuple(shared[name] for name in training.needs),
            )  # fmt: skip
            if step:
                shared[training.name] = job
            else:
                jobs += [need for need in all_needs(job) if need not in jobs]
                jobs.append(job)
    return jobs


def _shipped(training: Training) -> dict[str, str]:
    """Registered weights that a training starts from, by name: their hashes."""
    found = {}
    for key, value in training.model.items():
        if key.endswith("_weights") and isinstance(value, str) and value and value[0] != "{":
            method, tag = split_weight_name(value)
            found[value] = get_method(method).weight(tag).sha256
    return found


def _samples(images: int, passes: int, batch: int) -> int:
    """Samples an epoch: whole batches, because data modules drop an epoch's last, cut one."""
    samples = max(1, images // passes)
    return samples - samples % batch if samples >= batch else samples


def all_needs(job: Job) -> Iterator[Job]:
    """The shared steps behind a job, those that others read first."""
    for need in job.needs:
        yield from all_needs(need)
        yield need


def _flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def section(job: Job, name: str) -> dict[str, Any]:
    """A section of the settings with ``{seed}`` and ``{NAME}`` of shared steps filled in."""
    fill: dict[Any, Any] = {f"{{{need.training.name}}}": str(need.output) for need in job.needs}
    fill["{seed}"] = job.seed
    items = job.settings[name].items()
    return {k: fill.get(v, v) if isinstance(v, str) else v for k, v in items}


def with_files(data: Mapping[str, Any], dataset: str, options: Options) -> dict[str, Any]:
    """Arguments of a data module with the motion file, and with one place for rendered pictures.

    A mixture's synthetic sets get them.
    """
    motion = {} if options.mocap is None else {"mocap": str(options.mocap)}
    files = {**motion, "keep": str(options.work / "pictures")}
    if "sets" in data:
        sets = [{**files, **s} if s.get("name") == "synthetic" else s for s in data["sets"]]
        return {**data, "sets": sets}
    return {**data, **(files if dataset == "synthetic" else motion)}


def _common_words(job: Job, options: Options) -> list[str]:
    training = job.training
    words = ["--method", training.method, "--recipe", training.recipe]
    words += ["--dataset", job.settings["dataset"]]
    words += ["--seed_everything", str(job.seed)]
    if options.gpus is not None:
        words += ["--gpus", str(options.gpus)]
    for key, value in with_files(section(job, "data"), job.settings["dataset"], options).items():
        words += [f"--data.{key}", _flag(value)]
    return [*words, "--trainer.enable_progress_bar", "false"]


def fit_words(job: Job, options: Options, resume: bool) -> list[str]:
    """The words of the ``zoo`` command that trains a job (or runs a shared step's command)."""
    if job.training.command:
        fill = {"run": str(job.folder), "seed": str(job.seed)}
        return [word.format(**fill) for word in job.training.command]
    words = ["fit", *_common_words(job, options), "--run", str(job.folder)]
    for part in ("model", "trainer"):
        for key, value in section(job, part).items():
            words += [f"--{part}.{key}", _flag(value)]
    if resume:
        return [*words, "--ckpt_path", "last"]
    for need in job.needs:
        if need.training.name == job.training.weights:
            words += ["--weights", str(need.output)]
    return words


def test_words(job: Job, options: Options) -> list[str]:
    """The words of the ``zoo`` command that tests a trained job."""
    words = ["test", *_common_words(job, options), "--run", str(job.folder / "test")]
    checkpoint = job.folder / "checkpoints" / "best.ckpt"
    for need in job.needs:
        if need.training.name == job.training.test_of:
            checkpoint = need.output
            for key, value in section(job, "model").items():
                words += [f"--model.{key}", _flag(value)]
    words += ["--ckpt_path", str(checkpoint)]
    return [*words, "--json", str(job.folder / "test.json")]
