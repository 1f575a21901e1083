"""``zoo correction``: which optimiser, rate and dead zone correct a trained model best.

The published settings of the correction at test time can make poses worse, and the best rate
depends on the trained projector. The command measures settings on validation data, prints a table
and writes it; what it chooses is a setting for ``--model.correction`` and ``--correct``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from zoo.base import PoseModule
from zoo.batch import PoseBatch
from zoo.correction import PRESETS, Correction, check_correctable, correct_terms, save_csv
from zoo.errors import DataError, UsageError
from zoo.pose_errors import mpjpe
from zoo.projector import CorrectionTerms, SelfCorrecting

__all__ = ["GRID", "Measured", "choose", "collect", "measure", "run"]

GRID: tuple[Correction, ...] = (
    *(Correction(lr=lr, dead_zone=zone, update=update)
      for update in ("C+P", "C") for lr in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
      for zone in (1e-5, 0.02)),
    *(Correction(optimizer="adam", lr=lr, dead_zone=zone)
      for lr in (1.5e-5, 5e-5, 1.5e-4) for zone in (1e-5, 0.02)),
    PRESETS["paper"], PRESETS["release"],
)  # fmt: skip
"""What is tried: the default's rules with other rates, Adam, and the authors' settings."""


@dataclass(frozen=True)
class Measured:
    """What settings gave on some frames; errors are MPJPE of the frames with 3D labels.

    Attributes:
        setting: as ``Correction.parse`` reads it; ``off`` is the model's plain answer, and
            ``steps=0`` y_0 = Psi_C of it.
        mpjpe_mm: after the correction.
        worse: share of frames whose error is larger than the plain answer's.
        before_px: mean 2D disagreement before, px of the crop.
        after_px: after.
        stopped_at_1: share of frames that took one step.
        stopped_at_2: share that took two or more.
        discarded: share that kept the plain answer.
        moved_mm: mean movement of the robust joints.
        ms_per_frame: of the correction alone.
    """

    setting: str
    mpjpe_mm: float
    worse: float
    before_px: float
    after_px: float
    stopped_at_1: float
    stopped_at_2: float
    discarded: float
    moved_mm: float
    ms_per_frame: float


Case = tuple[CorrectionTerms, Tensor, Tensor]
"""Terms of a batch, its true poses (B, T, J, 3) mm and their validity."""


def collect(model: PoseModule, batches: Iterable[PoseBatch]) -> list[Case]:
    """The forward pass, once for all settings.

    Raises:
        UsageError: the model cannot be corrected.
        DataError: no frame has 3D labels.
    """
    check_correctable(model)
    subject = cast(SelfCorrecting, model)
    model.eval()
    cases: list[Case] = []
    with torch.no_grad():
        for batch in batches:
            there = {k: cast(Tensor, v).to(model.device) for k, v in batch.items()}
            cut = model.select_frames(cast(PoseBatch, there))
            terms = subject.correction_terms(cast(PoseBatch, there))
            cases.append((terms, cut["joints_3d"], cut["valid_3d"]))
    if not any(bool(valid.any()) for _, _, valid in cases):
        raise DataError("no validation frame has 3D labels; the correction cannot be measured")
    return cases


def measure(model: PoseModule, cases: Sequence[Case], setting: Correction | None) -> Measured:
    """One line of the table; ``None`` is the model without a correction."""
    subject = cast(SelfCorrecting, model)
    errors: list[Tensor] = []
    plain: list[Tensor] = []
    columns: list[Tensor] = []
    state: dict[str, Any] = {}
    seconds, frames = 0.0, 0
    for terms, target, valid in cases:
        raw = terms.prediction["pred_3d"]
        pred = raw
        if setting is not None:
            start = time.perf_counter()
            prediction, report = correct_terms(subject, terms, setting, state=state)
            seconds += time.perf_counter() - start
            pred = prediction["pred_3d"]
            columns.append(torch.stack([c.float().flatten() for c in report]).cpu())
        frames += pred.shape[0] * pred.shape[1]
        for poses, found in ((pred, errors), (raw, plain)):
            found.append(mpjpe(poses, target, valid, "none").flatten().cpu())
    error, before = torch.cat(errors), torch.cat(plain)
    if setting is None:
        return Measured("off", float(error.nanmean()), *[0.0] * 8)
    before_px, after_px, steps, moved, kept = torch.cat(columns, dim=1)
    known = ~error.isnan()
    return Measured(
        setting=str(setting),
        mpjpe_mm=float(error.nanmean()),
        worse=float((error > before)[known].float().mean()),
        before_px=float(before_px.nanmean()),
        after_px=float(after_px.nanmean()),
        stopped_at_1=float((steps == 1).float().mean()),
        stopped_at_2=float((steps >= 2).float().mean()),
        discarded=float(1 - kept.mean()),
        moved_mm=float(moved.mean()),
        ms_per_frame=1000 * seconds / max(frames, 1),
    )


def choose(table: Sequence[Measured]) -> Measured:
    """The line with the lowest error among those that ``--model.correction`` can name."""
    usable = [line for line in table if not line.mpjpe_mm != line.mpjpe_mm]
    return min(usable, key=lambda line: line.mpjpe_mm)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _numbers(text: str, flag: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word]
    except ValueError as error:
        raise UsageError(f"{flag} takes numbers with commas between them, not {text!r}") from error


def _grid(args: argparse.Namespace) -> list[Correction]:
    """The settings to try."""
    if not (args.lr or args.dead_zone or args.optimizer or args.setting):
        return list(GRID)
    base = [Correction(optimizer=name) for name in (args.optimizer or "sgd").split(",")]
    rates = _numbers(args.lr, "--lr") or [Correction().lr]
    zones = _numbers(args.dead_zone, "--dead-zone") or [Correction().dead_zone]
    found = [
        replace(start, lr=lr, dead_zone=zone)
        for start, lr, zone in itertools.product(base, rates, zones)
        if args.lr or args.dead_zone or args.optimizer
    ]
    named = [Correction.parse(text) for text in args.setting]
    return found + [setting for setting in named if setting is not None]


def run(argv: Sequence[str]) -> int:
    """``zoo correction``; returns the exit status.

    Raises:
        ZooError: wrong input; nothing is written then.
    """
    parser = _Parser(
        prog="zoo correction", allow_abbrev=False,
        description="Measures settings of the self-correction at test time on validation data.",
    )  # fmt: skip
    parser.add_argument("model", help="a checkpoint, a weight file, or NAME of registered weights")
    parser.add_argument("--optimizer", default="", help="with commas: sgd,adam,adagrad,rmsprop")
    parser.add_argument("--lr", default="", help="rates to try, with commas")
    parser.add_argument("--dead-zone", default="", help="dead zones to try, in sides of the crop")
    parser.add_argument(
        "--setting", action="append", default=[], help="one more setting, such as release,lr=1e-5"
    )
    parser.add_argument("--data", default="synthetic", help="data set; its validation split")
    parser.add_argument(
        "--data-arg", action="append", default=[], metavar="KEY=VALUE",
        help="an argument of the data set, such as mocap=cmu17.npz or val_samples=500",
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, default=None, help="0 = CPU; default: one if there is")
    parser.add_argument("--out", default="", help="also write the table, as FILE.csv")
    args = parser.parse_args(argv)
    grid = _grid(args)

    import yaml

    from zoo.checkpoint import load
    from zoo.fit import check_gpus
    from zoo.registry import dataset_class

    device = "cuda" if check_gpus(args.gpus)["accelerator"] == "gpu" else "cpu"
    model = load(args.model).to(device)
    check_correctable(model)
    given = {}
    for word in args.data_arg:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--data-arg takes KEY=VALUE, not {word!r}")
        given[key] = yaml.safe_load(value)
    try:
        data = cast(Any, dataset_class(args.data))(**given)
    except TypeError as error:
        raise UsageError(f"--data {args.data}: {error}") from error
    data.input_spec = model.input_spec
    data.prepare_data()
    data.setup("validate")

    def batches() -> Iterable[PoseBatch]:
        for raw in data.val_dataloader():
            moved = data.transfer_batch_to_device(raw, model.device, 0)
            yield data.on_after_batch_transfer(moved, 0)

    cases = collect(model, batches())
    table = [measure(model, cases, None), measure(model, cases, Correction(steps=0))]
    _print_header()
    for line in table:
        _print_line(line)
    for setting in grid:
        table.append(measure(model, cases, setting))
        _print_line(table[-1])
    best = choose(table)
    print(f"chosen on validation data: --model.correction {best.setting}")
    if args.out:
        header = [field.name for field in fields(Measured)]
        lines = [[getattr(line, name) for name in header] for line in table]
        print(save_csv(header, lines, Path(args.out)))
    return 0


def _print_header() -> None:
    print(
        f"{'MPJPE mm':>9} {'worse':>6} {'2D px':>6} {'after':>6} {'1 step':>7} {'more':>6} "
        f"{'discard':>8} {'moved mm':>9} {'ms':>7}  setting"
    )


def _print_line(line: Measured) -> None:
    print(
        f"{line.mpjpe_mm:9.2f} {line.worse:6.0%} {line.before_px:6.2f} {line.after_px:6.2f} "
        f"{line.stopped_at_1:7.0%} {line.stopped_at_2:6.0%} {line.discarded:8.0%} "
        f"{line.moved_mm:9.2f} {line.ms_per_frame:7.2f}  {line.setting}",
        flush=True,
    )
