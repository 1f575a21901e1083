"""``zoo data``: prepares and checks data sets from their official files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from zoo import synth_cli
from zoo.errors import UsageError

__all__ = ["run"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def run(argv: Sequence[str]) -> int:
    """Runs ``zoo data prepare cmu`` or ``zoo data synth``; returns the exit status.

    Raises:
        ZooError: wrong input; the output file is then untouched.
    """
    parser = _Parser(prog="zoo data", description="Prepare and check data sets.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    prepare = actions.add_parser("prepare", help="convert official files once")
    prepare.add_argument("dataset", choices=["cmu"], help="cmu: CMU motion capture (ASF/AMC)")
    prepare.add_argument("--root", required=True, type=Path, help="folder with NN.asf, NN_MM.amc")
    prepare.add_argument("--out", required=True, type=Path, help="the .npz to write")
    synth_cli.add_parser(actions)
    args = parser.parse_args(argv)
    if args.action == "synth":
        return synth_cli.run(args)
    from datamodules.cmu import prepare_cmu

    if args.out.suffix != ".npz":
        raise UsageError(f"--out {args.out}: the file must end in .npz")
    prepare_cmu(args.root, args.out)
    print(args.out)
    return 0
