"""``zoo data prepare human36m``: person crops out of videos, once."""

from __future__ import annotations

import argparse
import os
from typing import Any

from zoo.errors import UsageError, suggest

__all__ = ["add_flags", "run"]


def add_flags(parser: Any) -> None:
    """Adds the flags that ``prepare human36m`` has beyond ``--root`` and ``--out``."""
    parser.add_argument(
        "--fps", default="10",
        help="human36m: 10, 5 or 2 frames a second, or 64th for every 64th frame (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, default=400, help="human36m: largest side of a crop, px (default: 400)"
    )
    parser.add_argument(
        "--margin", type=float, default=1.6,
        help="human36m: side of a crop over that of the person's box (default: 1.6)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1,
        help="human36m: processes (default: one a core)",
    )  # fmt: skip
    parser.add_argument("--format", default="", help="human36m: name of the format of --root")
    parser.add_argument(
        "--skip-faulty", action="store_true",
        help="human36m: leave out recordings that cannot be read",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Makes or completes the store; returns the exit status.

    Raises:
        ZooError: wrong input; recordings that were done stay done.
    """
    from datamodules.prepare import RATES, Settings, prepare
    from datamodules.readers import find_reader, get_reader

    if args.fps not in RATES:
        raise UsageError(suggest(args.fps, RATES, "--fps"))
    if not 32 <= args.size <= 2000:
        raise UsageError(f"--size is {args.size} px; it must be 32 to 2000")
    if not 1 <= args.margin <= 4:
        raise UsageError(f"--margin is {args.margin:g}; it must be 1 to 4")
    reader = get_reader(args.format) if args.format else find_reader(args.root, args.dataset)
    settings = Settings(RATES[args.fps], args.size, args.margin)
    counts = prepare(
        reader, args.root, args.out, settings, workers=args.workers, skip_faulty=args.skip_faulty
    )
    print(
        f"{args.out}: {counts['crops']} crops of {counts['recordings']} recordings, "
        f"{counts['bytes'] / 1e6:.1f} MB"
    )
    return 0
