"""``zoo data check ROOT``: what a folder of data is, holds and lacks, with a sheet of samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datamodules.check import Sample

__all__ = ["add_parser", "run", "save_sheet"]


def add_parser(actions: Any) -> None:
    """Adds ``check`` to the subcommands of ``zoo data``."""
    parser = actions.add_parser("check", help="what a folder of data is, holds and lacks")
    parser.add_argument("root", type=Path, help="folder in any format that the zoo reads")
    parser.add_argument("--format", default="", help="name of the format; default: found out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--sheet", type=Path, help="the PNG of samples (default: data-check.png)")
    parser.add_argument("--no-sheet", action="store_true", help="draw none")


def run(args: argparse.Namespace) -> int:
    """Prints the report and draws the sheet; the exit status is 1 if something is wrong.

    Raises:
        ZooError: no such folder, of no known format, or the sheet cannot be written.
    """
    from datamodules.check import check, samples

    report, recordings = check(args.root, args.format)
    sheet = None
    if not args.no_sheet and recordings:
        sheet = save_sheet(samples(recordings), args.sheet or Path("data-check.png"))
    if args.json:
        content = {**report.as_dict(), "sheet": None if sheet is None else str(sheet)}
        print(json.dumps(content, indent=2))
    else:
        print("\n".join(report.lines()))
        if sheet is not None:
            print(f"sheet         {sheet}")
    return 1 if report.faults else 0


def save_sheet(samples: Sequence[Sample], path: Path) -> Path:
    """Draws samples on one PNG: bones of the 2D, and circles where the 3D is projected to.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    from zoo.draw import save_figure
    from zoo.skeleton import get_skeleton

    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.5 * rows), layout="constrained")
    figure.suptitle("lines: annotated 2D (left orange, right blue); circles: 3D through the camera",
                    fontsize=9)  # fmt: skip
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, sample in zip(axes, samples, strict=False):
        if sample.picture is not None:
            axis.imshow(sample.picture)
        skeleton = get_skeleton(sample.skeleton)
        for child, parent in skeleton.bones:
            line = sample.annotated[[child, parent]]
            if np.isfinite(line).all():
                joint = skeleton.joints[child]
                colour = {"l_": "#ff7f0e", "r_": "#1f77b4"}.get(joint[:2], "#2ca02c")
                axis.plot(line[:, 0], line[:, 1], color=colour, linewidth=1.5)
        axis.plot(*sample.projected.T, "o", markersize=3.5, markerfacecolor="none",
                  markeredgecolor="#d62728", markeredgewidth=0.8)  # fmt: skip
        points = np.concatenate([sample.annotated, sample.projected])
        points = points[np.isfinite(points).all(-1)]
        low, high = np.zeros(2), np.array(sample.size, dtype=float)
        if len(points):
            middle = (points.min(0) + points.max(0)) / 2
            half = max(0.65 * float((points.max(0) - points.min(0)).max()), 10.0)
            low, high = middle - half, middle + half
        axis.set_xlim(low[0], high[0])
        axis.set_ylim(high[1], low[1])
        axis.set_aspect("equal")
        axis.set_title(sample.label, fontsize=6)
    return save_figure(figure, path)
