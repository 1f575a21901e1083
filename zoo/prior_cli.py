"""``zoo prior``: fits the 3D pose prior of Tome et al. to motion capture."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError, OutputError, UsageError

if TYPE_CHECKING:
    from datamodules.motion import MotionBank
    from datamodules.splits import Split
    from zoo.prior import FitProgress

__all__ = ["prior_poses", "run"]

Poses = npt.NDArray[np.float32]

_CHUNK = 20_000
_CALIBRATION_POSES = 3000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def prior_poses(bank: MotionBank, split: Split, count: int = 0, seed: int = 0) -> Poses:
    """Poses of one split's recordings on the same split's bodies.

    Args:
        bank: motion of any splits; the other splits are not read.
        split: ``train``, ``val`` or ``test``.
        count: poses to make, going round the frames with another body each time; 0: every frame
            once.
        seed: which body a frame is given; the bodies are those of the synthetic people.

    Returns:
        (N, 17, 3) float32 mm, world axes, z up.

    Raises:
        zoo.errors.DataError: the bank has no recording of that split.
    """
    from datamodules.bodies import PARENTS, bodies, retarget

    part = bank.split(split)
    if not part.num_frames:
        raise DataError(f"the motion has no recording for the {split} split")
    count = count or part.num_frames
    rng = np.random.default_rng(seed)
    lengths = np.stack([body.lengths for body in bodies(split)])
    # Whole rounds over the frames, then a random part of one: no frame is left out by chance.
    frames = np.arange(count) % part.num_frames
    rest = count % part.num_frames
    if rest:
        frames[-rest:] = np.sort(rng.choice(part.num_frames, rest, replace=False))
    poses = np.empty((count, 17, 3), np.float32)
    for start in range(0, count, _CHUNK):
        rows = frames[start : start + _CHUNK]
        who = rng.integers(len(lengths), size=len(rows))
        world = retarget(part.positions[rows], PARENTS, lengths[who])
        poses[start : start + _CHUNK] = world - world[:, :1]  # metres off the origin cost digits
    return poses


def run(argv: Sequence[str]) -> int:
    """Runs ``zoo prior fit``; returns the exit status.

    Raises:
        ZooError: wrong input; the output file is then untouched.
    """
    parser = _Parser(prog="zoo prior", description="The 3D pose prior of Tome et al. 2017.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    fit = actions.add_parser("fit", help="fit it to the training split of motion capture")
    fit.add_argument("--mocap", default="", help="motion .npz; default: the built-in generator")
    fit.add_argument("--out", required=True, type=Path,
                     help=".safetensors; {sha} becomes 8 digits of the sha256")  # fmt: skip
    fit.add_argument("--components", type=int, default=3, help="1: a single Gaussian")
    fit.add_argument("--basis", type=int, default=23, help="basis vectors a component")
    fit.add_argument("--poses", type=int, default=0,
                     help="training poses, on varied bodies; 0: each frame once")  # fmt: skip
    fit.add_argument("--no-mirror", action="store_true", help="do not add the mirrored poses")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--quiet", action="store_true", help="no progress bar")
    return _fit(parser.parse_args(argv))


def _fit(args: argparse.Namespace) -> int:
    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out}: the file must end in .safetensors")
    if args.poses < 0:
        raise UsageError(f"--poses must be at least 0, not {args.poses}")
    if not (args.out.parent.is_dir() or args.out.parent == Path()):
        raise OutputError(f"--out {args.out}: the folder {args.out.parent} does not exist")
    from datamodules.motion import MotionBank
    from zoo.lift2d import GAIN
    from zoo.lifting import calibrate
    from zoo.prior import fit_prior

    bank = MotionBank.from_npz(args.mocap) if args.mocap else MotionBank.generated(args.seed)
    training = prior_poses(bank, "train", args.poses, args.seed)
    held_out = prior_poses(bank, "val", seed=args.seed)
    with _bar(len(training), args.quiet) as show:
        prior = fit_prior(
            training, args.components, args.basis, mirror=not args.no_mirror, seed=args.seed,
            progress=show,
        )  # fmt: skip
    keep = np.random.default_rng(args.seed).permutation(len(held_out))[:_CALIBRATION_POSES]
    # With the gain of zoo.lift: the radii then speak of the same lift.
    prior = calibrate(prior, held_out[keep], seed=args.seed, gain=GAIN)
    nll = -float(prior.log_prob(held_out[keep]).mean())
    temporary = args.out.with_name(f".{args.out.name}.tmp")
    try:
        prior.save(temporary)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        final = args.out.with_name(args.out.name.replace("{sha}", digest[:8]))
        os.replace(temporary, final)
    except OSError as error:
        raise OutputError(f"cannot write {args.out}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    print(
        f"{prior.components} component{'s' * (prior.components > 1)} of {prior.basis_size} "
        f"directions from {len(training)} poses; "
        f"{len(keep)} held-out poses: {nll:.1f} nat a pose"
    )
    print(f"sha256 {digest}")
    print(final)
    return 0


@contextmanager
def _bar(count: int, quiet: bool) -> Iterator[Any]:
    """A progress bar with the time left, as the callback of ``fit_prior``."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=sys.stderr.isatty()) as progress:
        task = progress.add_task(f"fitting {count} poses", note="")

        def show(step: FitProgress) -> None:
            nll = "" if math.isnan(step.nll) else f"{step.nll:.1f} nat"
            note = f"{step.stage}, {step.basis} directions, {nll}"
            progress.update(task, completed=step.step, total=step.steps, note=note)

        yield show
        progress.update(task, completed=progress.tasks[0].total)  # EM may stop early
