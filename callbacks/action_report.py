"""Results by action: a table in the terminal, a CSV and a JSON file in the run folder."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from zoo.base import PoseModule
from zoo.metrics import METRIC_DEFINITIONS, PoseMetrics
from zoo.pose import write_atomically

__all__ = ["ActionReport"]

# What fits into 80 columns; the files have every metric.
_SHOWN = {
    "mpjpe_mm": "MPJPE",
    "mpjpe_root_mm": "root MPJPE",
    "mpjpe_centroid_mm": "centroid",
    "pa_mpjpe_mm": "PA-MPJPE",
    "n_mpjpe_mm": "N-MPJPE",
    "pck_150mm": "PCK@150",
    "auc_150mm": "AUC",
    "pcp_50": "PCP",
    "error_2d_image_px": "2D px",
}


SUMMARIES = ("mean over subjects and actions", "mean over actions", "all frames")
"""The rows of a report that are no action."""


class ActionReport(pl.Callback):
    """At the end of a test: ``per_action.csv`` and ``per_action.json``, and a table, also at W&B.

    Every number comes with its protocol's definition. Only the first process writes. A
    ``fast_dev_run`` writes no files but ``json_path``.

    Args:
        json_path: a second place for the JSON file.
    """

    def __init__(self, json_path: str | Path | None = None) -> None:
        self.json_path = None if json_path is None else Path(json_path)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints and writes the report.

        Raises:
            zoo.errors.OutputError: a file cannot be written.
        """
        assert isinstance(pl_module, PoseModule)
        metrics = pl_module.test_metrics
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        if metrics is None:
            return
        report = metrics.per_action()
        if not trainer.is_global_zero:
            return
        Console().print(_table(report, metrics))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_to_wandb(logger, report, metrics)
        document = _document(report, metrics, pl_module, trainer)
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_atomically(folder / "per_action.csv", _csv(report, metrics).encode())
            write_atomically(folder / "per_action.json", text.encode())
        if self.json_path is not None:
            write_atomically(self.json_path, text.encode())


def _log_to_wandb(
    logger: WandbLogger, report: dict[str, dict[str, float]], metrics: PoseMetrics
) -> None:
    """The table by action, and the protocol's definition beside the run's other settings."""
    columns = _columns(report)
    rows = [
        [action, int(row["samples"]), *(row[k] if _known(row, k) else None for k in columns)]
        for action, row in report.items()
    ]
    logger.log_table("test/per_action", ["action", "samples", *columns], rows)
    protocol = {"test": metrics.definition}
    logger.experiment.config.update({"protocol": protocol}, allow_val_change=True)


def _columns(report: dict[str, dict[str, float]]) -> list[str]:
    """The metrics in the order of their definitions, then any others."""
    found = dict.fromkeys(key for row in report.values() for key in row if key != "samples")
    known = [key for key in METRIC_DEFINITIONS if key in found]
    return known + [key for key in found if key not in METRIC_DEFINITIONS]


def _table(report: dict[str, dict[str, float]], metrics: PoseMetrics) -> Table:
    shown = dict(_SHOWN)
    if metrics.protocol.score != "pck_150mm":
        del shown["auc_150mm"]
    columns = [key for key in _columns(report) if key in shown]
    table = Table(caption=metrics.definition, caption_justify="left", caption_style="dim")
    table.add_column("action")
    table.add_column("poses", justify="right")
    for key in columns:
        table.add_column(_SHOWN[key], justify="right")
    for action, row in report.items():
        numbers = [f"{row[k]:.1f}" if _known(row, k) else "-" for k in columns]
        summary = action in SUMMARIES
        if summary and table.rows and not table.rows[-1].style:
            table.add_section()
        table.add_row(
            action, f"{row['samples']:.0f}", *numbers, style="bold" if summary else None
        )  # fmt: skip
    return table


def _known(row: dict[str, float], key: str) -> bool:
    return key in row and math.isfinite(row[key])


def _csv(report: dict[str, dict[str, float]], metrics: PoseMetrics) -> str:
    columns = _columns(report)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["action", "samples", *columns, "protocol", "definition"])
    for action, row in report.items():
        numbers = [f"{row[k]:.4f}" if _known(row, k) else "" for k in columns]
        writer.writerow(
            [action, int(row["samples"]), *numbers, metrics.protocol.name, metrics.definition]
        )
    return text.getvalue()


def _document(
    report: dict[str, dict[str, float]],
    metrics: PoseMetrics,
    model: PoseModule,
    trainer: pl.Trainer,
) -> dict[str, Any]:
    from zoo import __version__

    datamodule = getattr(trainer, "datamodule", None)
    columns = _columns(report)
    return {
        "method": getattr(model, "zoo_name", "") or type(model).__name__,
        "data": "" if datamodule is None else type(datamodule).__name__,
        "zoo_version": __version__,
        "definition": metrics.definition,
        "score": metrics.protocol.score,
        "protocol": metrics.protocol.as_dict(),
        "metrics": {k: METRIC_DEFINITIONS.get(k, "") for k in columns},
        "results": {k: trainer_value(trainer, f"test/{k}") for k in columns},
        "per_action": {
            action: {
                "samples": int(row["samples"]),
                **{k: row[k] if _known(row, k) else None for k in columns},
            }
            for action, row in report.items()
        },
    }


def trainer_value(trainer: pl.Trainer, key: str) -> float | None:
    """A logged number, None where it is missing or not finite."""
    value = float(trainer.callback_metrics.get(key, math.nan))
    return value if math.isfinite(value) else None
