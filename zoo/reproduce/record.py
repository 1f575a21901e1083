"""The JSON of a finished run, and what is read from a run folder to write it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, DataError
from zoo.reproduce.children import read_json
from zoo.reproduce.jobs import Job, Options
from zoo.reproduce.table import Table

__all__ = ["epochs_seen", "read_report", "result"]


def epochs_seen(checkpoint: Path) -> int:
    """Number of whole epochs behind a checkpoint of ``zoo fit``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return int(content["epoch"]) + 1
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        line = str(error).split("\n")[0]
        raise CheckpointError(f"{checkpoint} cannot be read after the training: {line}") from error


def read_report(path: Path) -> dict[str, Any]:
    """What ``zoo test --json`` wrote.

    Raises:
        DataError: nothing, or something else.
    """
    report = read_json(path)
    if report is None or "results" not in report:
        raise DataError(f"`zoo test` left no report in {path}")
    return report


def result(
    table: Table, job: Job, state: Mapping[str, Any], report: Mapping[str, Any], options: Options
) -> dict[str, Any]:
    """The JSON of a finished run; it holds no path."""
    import torch

    from zoo import __version__

    motion = "built-in motion"
    if options.mocap is not None:
        motion = f"motion of {options.mocap.name} (sha256 {job.settings['mocap_sha256'][:12]}...)"
    return {
        "table": table.name,
        "row": job.training.name,
        "seed": job.seed,
        "settings_hash": job.hash,
        "settings": dict(job.settings),
        "data": f"{job.settings['dataset']}, {motion}",
        "images_seen": job.images,
        "metrics": dict(report["results"]),
        "actions": {k: dict(v) for k, v in report["per_action"].items() if k != "all frames"},
        "protocol_definition": report["definition"],
        "fit_seconds": round(state["fit_seconds"], 1),
        "interruptions": state["interruptions"],
        "device": _device(options),
        "torch": torch.__version__,
        "zoo": __version__,
    }


def _device(options: Options) -> str:
    import torch

    if options.gpus == 0 or not torch.cuda.is_available():
        return "CPU, one thread"
    name = torch.cuda.get_device_name()
    return f"{options.gpus} x {name}" if (options.gpus or 1) > 1 else name
