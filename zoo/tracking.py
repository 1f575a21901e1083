"""Weights & Biases: runs, resumed runs, artifacts and sweeps. Only the first process calls it.

Everything that goes there is in the run folder too, as CSV, PNG, JSON and Markdown.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from zoo.errors import OutputError, UsageError, suggest
from zoo.files import write_atomically
from zoo.registry import MethodRecord, get_method, method_names, resource

__all__ = [
    "create_sweep",
    "has_account",
    "log_checkpoints",
    "read_sweep",
    "remember_run",
    "sweep_trial",
    "wandb_logger",
]

_ID_FILE = "wandb-run-id"


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UsageError("this needs wandb: pip install 'pose-zoo[wandb]'") from error
    return wandb


def has_account() -> bool:
    """Whether an API key is at hand: in the environment, or where ``wandb login`` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and "wandb" in path.read_text(errors="replace")


# ---- runs ---------------------------------------------------------------------------------------


def wandb_logger(run: Path, method: str, config: dict[str, Any]) -> WandbLogger:
    """The logger of ``--logger wandb``; a resumed training goes on with its own W&B run.

    Raises:
        UsageError: wandb is not installed.
    """
    _wandb()
    if not has_account():
        # Without an account everything is still written, for a later `wandb sync`.
        os.environ.setdefault("WANDB_MODE", "offline")
    naming: dict[str, Any] = {}
    if "WANDB_RUN_ID" not in os.environ:  # a sweep's agent names the run
        path = run / _ID_FILE
        known = path.read_text().strip() if path.is_file() else ""
        naming = {"id": known or uuid.uuid4().hex[:8]} | ({"resume": "allow"} if known else {})
    return WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "zoo"),
        name=run.name,
        save_dir=str(run),
        tags=[method],
        config={k: v for k, v in config.items() if k != "config"},
        **naming,
    )


@rank_zero_only
def remember_run(loggers: Sequence[Logger], run: Path) -> None:
    """Writes the W&B run's id into the run folder, for a resume."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._id and not (run / _ID_FILE).exists():
            write_atomically(run / _ID_FILE, f"{logger._id}\n".encode())


@rank_zero_only
def log_checkpoints(loggers: Sequence[Logger], run: Path) -> None:
    """Uploads ``best.ckpt``, ``last.ckpt`` and the model card as one artifact of type ``model``."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        artifact = _wandb().Artifact(f"{run.name}-{logger.experiment.id}", type="model")
        for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model_card.md"):
            if (run / name).is_file():
                artifact.add_file(str(run / name), name=Path(name).name)
        logger.experiment.log_artifact(artifact)


def sweep_trial(root: Path, stem: str) -> Path | None:
    """The run folder of a sweep's trial, named after it: agents side by side share none."""
    trial = os.environ.get("WANDB_RUN_ID")
    return root / f"{stem}-{trial}" if trial and os.environ.get("WANDB_SWEEP_ID") else None


# ---- sweeps -------------------------------------------------------------------------------------


def _sweep_file(record: MethodRecord) -> Path:
    """``METHOD.yaml``, or the file of the longest beginning of the name, or of the paper."""
    folder = resource("zoo/sweeps")
    words = record.name.split("-")
    stems = ["-".join(words[:n]) for n in range(len(words), 0, -1)]
    stems.append(record.class_path.split(":")[0].split(".")[-1])
    for stem in stems:
        if (folder / f"{stem}.yaml").is_file():
            return Path(folder / f"{stem}.yaml")
    raise UsageError(f"no sweep for {record.name}: write one and give it with --file")


def read_sweep(
    method: str, *, file: str = "", recipe: str = "", extra: Sequence[str] = ()
) -> dict[str, Any]:
    """The sweep of a method as W&B takes it.

    Where names of one paper share a file, the command is that of ``method``, and parameters that
    the name itself fixes are left out.

    Args:
        method: registry name.
        file: a sweep of one's own in place of the method's.
        recipe: in place of the file's.
        extra: words to add to the command, such as ``--data.mocap cmu17.npz``.

    Raises:
        UsageError: the method or the file is unknown or holds no sweep.
    """
    if method not in method_names():
        raise UsageError(suggest(method, method_names(), "method"))
    record = get_method(method)
    path = Path(file) if file else _sweep_file(record)
    try:
        sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(sweep, dict) or not {"method", "parameters", "command"} <= sweep.keys():
        raise UsageError(f"{path} is no sweep: it needs method, parameters and command")
    command = [str(word) for word in sweep["command"]]
    if file:
        return {**sweep, "command": [*command, *extra]}
    at = command.index("--method") + 1
    if command[at] != method:
        command[at] = method
        fixed = {f"model.{name}" for name in record.args}
        sweep["parameters"] = {k: v for k, v in sweep["parameters"].items() if k not in fixed}
        sweep["name"] = method
    if recipe:
        if recipe not in record.recipes:
            raise UsageError(suggest(recipe, record.recipes, f"{method} recipe"))
        command[command.index("--recipe") + 1] = recipe
    # The trial's own file comes last and wins.
    cut = command.index("--config") if "--config" in command else len(command)
    return {**sweep, "command": [*command[:cut], *extra, *command[cut:]]}


def create_sweep(sweep: dict[str, Any], project: str, entity: str = "") -> str:
    """Creates a sweep at W&B.

    Returns:
        Its path, ``PROJECT/ID`` or ``ENTITY/PROJECT/ID``, as ``wandb agent`` takes it.

    Raises:
        UsageError: there is no account here, or W&B is told to stay offline.
        OutputError: W&B cannot be reached or refuses.
    """
    wandb = _wandb()
    offline = os.environ.get("WANDB_MODE", "") in ("offline", "disabled", "dryrun")
    if offline or not has_account():
        reason = "WANDB_MODE is offline" if offline else "no W&B account here (wandb login)"
        raise UsageError(
            f"a sweep lives at W&B: {reason}; --print shows it, and each trial is one `zoo fit`"
        )
    try:
        number = wandb.sweep(sweep, project=project, entity=entity or None)
    except Exception as error:  # wandb raises errors of its own and of its HTTP client
        raise OutputError(
            f"W&B did not create the sweep: {' '.join(str(error).split())}"
        ) from error
    return "/".join(part for part in (entity, project, number) if part)
