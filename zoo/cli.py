"""The ``zoo`` command: dispatch, and the subcommands that need no Trainer.

Wrong input ends with one line on standard error and exit status 2; an unexpected failure keeps its
traceback and status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from zoo.errors import UsageError, ZooError, suggest

__all__ = ["main", "parse_boxes"]

# albumentations asks the network for updates on import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _parser(name: str, description: str) -> _Parser:
    return _Parser(prog=f"zoo {name}", description=description, allow_abbrev=False)


def _list(argv: Sequence[str]) -> int:
    parser = _parser("list", "Registered methods.")
    parser.add_argument("pattern", nargs="?", default="*", help='shell pattern such as "tome*"')
    parser.add_argument("--pretrained", action="store_true", help="only names with weights")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    from zoo.info import overview

    rows = overview(args.pattern, args.pretrained)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        raise UsageError(f"no method matches {args.pattern!r}; `zoo list` shows all")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "paper", "input", "weights", "MPJPE mm", "measured on"):
        table.add_column(column, overflow="fold")
    for row in rows:
        if row["error"]:
            table.add_row(row["name"], f"[red]cannot be used: {row['error']}[/red]")
            continue
        error_mm = "" if row["mpjpe_mm"] is None else f"{row['mpjpe_mm']:.1f}"
        tags = ", ".join(row["weights"])
        table.add_row(
            row["name"], row["paper"], row["input"], tags, error_mm, row["measured_on"] or ""
        )
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    return 0


def _info(argv: Sequence[str]) -> int:
    parser = _parser("info", "One method: paper, size, weights, licence, measured results.")
    parser.add_argument("name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    from zoo.info import describe, human_size
    from zoo.registry import split_weight_name

    facts = describe(split_weight_name(args.name)[0])
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    paper = facts["paper"]
    print(f"{facts['name']}: {facts['description']}")
    print(f"paper       {paper['title']} ({paper['authors']}, {paper['venue']}) {paper['url']}")
    print(f"input       {facts['input']}")
    print(f"output      {', '.join(f'{k} {v}' for k, v in facts['output'].items())}")
    print(f"size        {human_size(facts['size']['paper'])} (constructor defaults)")
    print(f"recipes     {', '.join(facts['recipes'])}")
    print(f"code        {facts['class']} ({facts['code_license']}, from {facts['origin']})")
    if not facts["weights"]:
        print(f"weights     none; train: zoo fit --method {facts['name']} --recipe small")
    for weight in facts["weights"]:
        print(f"weights     {weight['name']}: {human_size(weight)}")
        print(f"            trained on {weight['trained_on']}; licence {weight['license']}")
        print(f"            {weight['command']}")
        for result in weight["results"]:
            paper_value = result.get("reported")
            beside = "" if paper_value is None else f" (paper, own data: {paper_value})"
            print(
                f"            {result['metric']} {result['measured']} on {result['data']}, "
                f"{result['protocol']}{beside}"
            )
        if weight["notes"]:
            print(f"            {weight['notes']}")
    return 0


def parse_boxes(values: Sequence[str]) -> list[list[float]] | None:
    """The numbers of ``--box`` flags; None: there are none."""
    boxes = []
    for value in values:
        try:
            box = [float(v) for v in value.split(",")]
        except ValueError:
            box = []
        if len(box) != 4:
            raise UsageError(f"--box takes x0,y0,x1,y1 in px, not {value!r}")
        boxes.append(box)
    return boxes or None


def _predict(argv: Sequence[str]) -> int:
    from zoo import video_cli
    from zoo.lift_cli import add_flags, wanted
    from zoo.lift_cli import run as lift

    parser = _parser(
        "predict", "3D poses of the people in pictures and videos, as JSON and overlays."
    )
    parser.add_argument(
        "sources", nargs="*", help="image files or folders, videos, or keypoint files"
    )
    parser.add_argument(
        "--method", default="",
        help="NAME or NAME.TAG, see `zoo list`; may be left out for keypoints: the pose prior",
    )  # fmt: skip
    parser.add_argument("--out", default="predictions", help="folder for poses.json and pictures")
    parser.add_argument("--ckpt_path", default="", help="a run's checkpoint or a weight file")
    parser.add_argument("--weights", default="", help="NAME.TAG or a weight file")
    parser.add_argument(
        "--box", action="append", default=[], metavar="X0,Y0,X1,Y1",
        help="person box in px, one flag a person; default: the whole picture",
    )  # fmt: skip
    parser.add_argument("--flip-test", action="store_true", help="average with the mirrored crop")
    parser.add_argument("--gpus", type=int, default=None, help="0 = CPU; default: one if there is")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--no-overlay", action="store_true", help="write the JSON only")
    parser.add_argument(
        "--correct", default=None, metavar="SETTING",
        help="self-correction of methods that have it: on, off, release, or settings such as "
        "lr=0.002,steps=1; default: the model's own; writes corrections.csv",
    )  # fmt: skip
    add_flags(parser)
    video_cli.add_flags(parser)
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1, not {args.batch_size}")
    if video_cli.wanted(args):
        return video_cli.run(args)
    if wanted(args):
        return lift(args)
    if not args.method:
        raise UsageError(
            "zoo predict: pictures need --method NAME (see `zoo list`) or --detector keypointrcnn"
        )
    boxes = parse_boxes(args.box)
    from zoo.registry import get_method, split_weight_name

    record = get_method(split_weight_name(args.method)[0])
    from zoo.checkpoint import load
    from zoo.correction import Correction, FrameCorrection, save_corrections
    from zoo.fit import check_gpus
    from zoo.predict import expand_sources, predict
    from zoo.runs import check_writable

    Correction.parse(args.correct)  # a wrong setting ends here
    device = "cuda" if check_gpus(args.gpus)["accelerator"] == "gpu" else "cpu"
    sources = expand_sources(args.sources)
    model = load(args.ckpt_path or args.weights or args.method).to(device)
    if (args.ckpt_path or args.weights) and type(model) is not _class_of(record):
        raise UsageError(
            f"{args.ckpt_path or args.weights} holds {model.zoo_name!r}; use that name"
        )
    if model.input_spec.frames > 1 and model.input_spec.kind == "image":
        print(
            f"zoo: {model.zoo_name} looks at clips; it sees {model.input_spec.frames} times the "
            "same picture. Frames of a video: a video file, or a folder with --fps",
            file=sys.stderr,
        )
    out = Path(args.out)
    check_writable(out)
    from zoo.draw import overlay_path, save_overlay
    from zoo.pose import save_poses

    corrections: list[FrameCorrection] = []
    poses = predict(
        model,
        sources,
        boxes=None if boxes is None else [boxes] * len(sources),
        flip_test=args.flip_test,
        batch_size=args.batch_size,
        progress=len(sources) > 1,
        correct=args.correct,
        corrections=corrections,
    )
    if not args.no_overlay:
        for source in sources:
            people = [p for p in poses if p.source == str(source)]
            print(save_overlay(source, people, overlay_path(out, source, sources)))
    print(save_poses(poses, out / "poses.json"))
    if corrections:
        print(save_corrections(corrections, out / "corrections.csv"))
    return 0


def _class_of(record: Any) -> type:
    from zoo.registry import resolve_class

    return resolve_class(record)


def _data(argv: Sequence[str]) -> int:
    from zoo.data_cli import run

    return run(argv)


def _prior(argv: Sequence[str]) -> int:
    from zoo.prior_cli import run

    return run(argv)


def _correction(argv: Sequence[str]) -> int:
    from zoo.correction_cli import run

    return run(argv)


def _reproduce(argv: Sequence[str]) -> int:
    from zoo.reproduce import run

    return run(argv)


def _sweep(argv: Sequence[str]) -> int:
    from zoo.sweep_cli import run

    return run(argv)


def _analyse(argv: Sequence[str]) -> int:
    from zoo.analysis import run

    return run(argv)


def _stage(stage: str) -> Callable[[Sequence[str]], int]:
    def command(argv: Sequence[str]) -> int:
        from zoo.request import flags_help, parse_request

        if {"-h", "--help"} & set(argv):
            print(flags_help(stage), flush=True)
            if not any(word.partition("=")[0] == "--method" for word in argv):
                return 0
            print()
        request = parse_request(stage, argv)  # typing errors end here, before Lightning loads
        from zoo.fit import run

        return run(request)

    return command


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "list": (_list, "names, papers, weights, measured error"),
    "info": (_info, "one method: paper, size, weights, licence, results"),
    "fit": (_stage("fit"), "train: zoo fit --method park --recipe small"),
    "validate": (_stage("validate"), "metrics on the validation split"),
    "test": (_stage("test"), "metrics on the test split"),
    "predict": (_predict, "3D poses from pictures and videos, as JSON and overlays"),
    "data": (_data, "prepare and check data sets"),
    "prior": (_prior, "fit the 3D pose prior to motion capture"),
    "correction": (_correction, "choose the self-correction's settings on validation data"),
    "sweep": (_sweep, "a method's ablations as a W&B sweep"),
    "reproduce": (_reproduce, "a paper's table, every row and seed, resumable"),
    "analyse": (_analyse, "figures and CSV: limb-ratios, tsne, strips, pcp"),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help_}" for name, (_, help_) in COMMANDS.items()]
    return "usage: zoo COMMAND ...\n\n" + "\n".join(lines) + "\n\nzoo COMMAND --help says more."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        from zoo import __version__

        print(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UsageError(suggest(argv[0], COMMANDS, "command"))
        return COMMANDS[argv[0]][0](argv[1:])
    except ZooError as error:
        print(f"zoo: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
