"""``zoo data``: prepares and checks data sets from their official files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from zoo import check_cli, prepare_cli, synth_cli
from zoo.errors import UsageError

__all__ = ["run"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def run(argv: Sequence[str]) -> int:
    """Runs ``zoo data check|prepare|synth ...``; returns the exit status.

    Raises:
        ZooError: wrong input; the output file is then untouched.
    """
    parser = _Parser(prog="zoo data", description="Prepare and check data sets.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    prepare = actions.add_parser("prepare", help="convert official files once")
    prepare.add_argument(
        "dataset", choices=["cmu", "human36m"],
        help="cmu: CMU motion capture (ASF/AMC); human36m: person crops out of the videos",
    )  # fmt: skip
    prepare.add_argument("--root", required=True, type=Path, help="folder of the data set")
    prepare.add_argument("--out", required=True, type=Path, help="the .npz or folder to write")
    prepare_cli.add_flags(prepare)
    check_cli.add_parser(actions)
    synth_cli.add_parser(actions)
    args = parser.parse_args(argv)
    if args.action == "check":
        return check_cli.run(args)
    if args.action == "synth":
        return synth_cli.run(args)
    if args.dataset == "human36m":
        return prepare_cli.run(args)
    from datamodules.cmu import prepare_cmu

    if args.out.suffix != ".npz":
        raise UsageError(f"--out {args.out}: the file must end in .npz")
    prepare_cmu(args.root, args.out)
    print(args.out)
    return 0
