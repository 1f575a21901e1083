"""``zoo reproduce TABLE``: trains and tests every row and seed of a paper's table, resumable.

A run is a child process ``zoo fit`` and then ``zoo test`` on the checkpoint that validation chose.
The first seed of all rows comes first, so that a first table is there early. A finished run is one
JSON file in the results folder and is never run again; an unfinished one goes on from its last
checkpoint. The Markdown page is written anew after every run. Nothing is committed.

A run is bound to its settings by a hash over everything that decides its numbers (method, recipe,
flags, seed, budget, content of the motion file). A JSON made with other settings is refused.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from zoo.errors import DataError, UsageError
from zoo.reproduce.baseline import mean_pose_baseline, measure_baseline
from zoo.reproduce.jobs import Options, fit_words, test_words
from zoo.reproduce.runner import Runner
from zoo.reproduce.table import Table, read_table, table_names

__all__ = ["mean_pose_baseline", "run"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _parser() -> _Parser:
    parser = _Parser(
        prog="zoo reproduce",
        description="A paper's table: every row and seed, beside the paper's numbers. Run the same "
        "command again to go on after an interruption.",
        allow_abbrev=False,
    )
    parser.add_argument("table", nargs="?", default="", help="name from --list, or a .yaml file")
    parser.add_argument("--list", action="store_true", help="show the tables and their rows")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and stop")
    parser.add_argument(
        "--mocap", type=Path, metavar="FILE.npz", help="train and test on its motion"
    )
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between them")
    parser.add_argument("--rows", default="", help="only these rows, commas between them")
    parser.add_argument("--images", type=int, default=0, help="training images a run sees")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="JSON and Markdown")
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"), help="run folders")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--gpus", type=int, default=None, help="0 = CPU; default: one if there is")
    parser.add_argument("--redo", action="store_true", help="replace runs made with other settings")
    return parser


def _options(args: argparse.Namespace, table: Table) -> Options:
    try:
        seeds = tuple(int(s) for s in args.seeds.split(","))
    except ValueError:
        raise UsageError(f"--seeds takes numbers such as 0,1,2, not {args.seeds!r}") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds {args.seeds}: each seed once, 0 or more")
    rows = tuple(table.row(name).name for name in args.rows.split(",") if name)
    for flag, value, least in (("--jobs", args.jobs, 1), ("--images", args.images, 0)):
        if value < least:
            raise UsageError(f"{flag} must be at least {max(1, least)}, not {value}")
    if args.gpus is not None and args.gpus < 0:
        raise UsageError(f"--gpus takes a number of GPUs (0 = CPU), not {args.gpus}")
    if args.mocap is not None and not args.mocap.is_file():
        raise DataError(f"--mocap {args.mocap}: no such file; `zoo data prepare cmu` makes one")
    return Options(
        seeds, rows, args.images, args.mocap, args.out, args.work, args.jobs, args.gpus, args.redo
    )


def _command(args: argparse.Namespace) -> str:
    """The command line as it goes on the page: flags that are not defaults, files by name only."""
    words = ["zoo", "reproduce", Path(args.table).name]
    parser = _parser()
    for key in ("mocap", "seeds", "rows", "images", "gpus"):
        value = getattr(args, key)
        if value != parser.get_default(key):
            words += [f"--{key}", value.name if isinstance(value, Path) else str(value)]
    return shlex.join(words)


def _show_tables(name: str) -> None:
    for table in [read_table(n) for n in ([name] if name else table_names())]:
        print(f"{table.name}: {table.title}; {len(table.rows)} rows, {table.images} images a run")
        for row in table.rows:
            print(f"  {row.name:<24} {row.label}")


def _show_plan(runner: Runner) -> None:
    for job in runner.jobs:
        if runner.finished(job):
            print(f"# {job.name}: finished")
            continue
        print(f"# {job.name}: {job.images} images in {job.training.epochs} epochs")
        print("zoo " + shlex.join(fit_words(job, runner.options, resume=False)))
        if job.result is not None:
            print("zoo " + shlex.join(test_words(job, runner.options)))


def run(argv: Sequence[str]) -> int:
    """Runs ``zoo reproduce``; returns the exit status.

    Returns:
        0; 1 if a run failed (the others went on); 130 after Ctrl-C or SIGTERM.

    Raises:
        ZooError: wrong input; nothing has been written then.
    """
    args = _parser().parse_args(argv)
    if args.list:
        _show_tables(args.table)
        return 0
    if not args.table:
        raise UsageError(f"zoo reproduce needs a table: {', '.join(table_names())}")
    table = read_table(args.table)
    options = _options(args, table)
    runner = Runner(table, options, _command(args), baseline=measure_baseline)
    if args.dry_run:
        _show_plan(runner)
        return 0
    from zoo.runs import check_writable

    if options.gpus is not None:
        from zoo.fit import check_gpus

        check_gpus(options.gpus)
    runner.check()
    check_writable(options.out)
    check_writable(options.work)
    seen = {job.images for job in runner.jobs}
    print(
        f"{table.title}: {len(runner.jobs)} runs of {'/'.join(map(str, sorted(seen)))} images each"
    )
    return runner.run()
