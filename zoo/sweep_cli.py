"""``zoo sweep METHOD --project P``: the method's ablation axes as a W&B sweep."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

import yaml

from zoo.errors import UsageError

__all__ = ["run"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="zoo sweep",
        allow_abbrev=False,
        description="Creates the W&B sweep of a method (the ablations of its paper) and prints the "
        "command of its agents.",
        epilog="Words after -- are added to every trial: "
        "zoo sweep park --project P -- --data.mocap cmu17.npz",
    )
    parser.add_argument("method", help="a name, see `zoo list`")
    parser.add_argument("--project", default="zoo", help="W&B project")
    parser.add_argument("--entity", default="", help="W&B user or team")
    parser.add_argument("--recipe", default="", help="default: small")
    parser.add_argument("--file", default="", help="a sweep of your own")
    parser.add_argument("--print", action="store_true", help="show the sweep, create nothing")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs ``zoo sweep``; returns the exit status.

    Raises:
        zoo.errors.ZooError: wrong input, or W&B cannot be used.
    """
    words = list(argv)
    extra: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, extra = words[:at], words[at + 1 :]
    args = _parser().parse_args(words)
    from zoo.tracking import create_sweep, read_sweep

    sweep = read_sweep(args.method, file=args.file, recipe=args.recipe, extra=extra)
    if args.print:
        print(yaml.safe_dump(sweep, sort_keys=False), end="")
        return 0
    path = create_sweep(sweep, args.project, args.entity)
    print("start as many as you like, on as many machines, in a folder for their runs:")
    print(f"wandb agent {path}")
    return 0
