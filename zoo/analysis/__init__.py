"""``zoo analyse``: looks into trained models, as figures (PNG) and numbers (CSV).

``limb-ratios``: are ratios of limb lengths preserved (Katircioglu et al. 2017, Fig. 5)?
``tsne``: the latent space of an autoencoder in the plane (Fig. 6). ``strips``: a few frames of a
clip, with and without a temporal model (Fig. 10). ``pcp``: percentage of correctly estimated parts
(Table 6). All run on any checkpoints and any data module.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from zoo.errors import UsageError

__all__ = ["run"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _parser() -> _Parser:
    parser = _Parser(prog="zoo analyse", description="Figures and CSV of trained models.")
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=_Parser)
    texts = {
        "limb-ratios": "matrices of the errors of log ratios of limb lengths",
        "tsne": "t-SNE of the codes that an autoencoder gives the true poses",
        "strips": "frames of a clip: picture, each model, truth",
        "pcp": "percentage of correctly estimated parts",
    }
    for kind, text in texts.items():
        one = kinds.add_parser(kind, help=text, description=text, allow_abbrev=False)
        one.add_argument(
            "models", nargs=1 if kind == "tsne" else "+", metavar="MODEL",
            help="NAME, NAME.TAG or a checkpoint; LABEL=MODEL gives it a label of its own",
        )  # fmt: skip
        one.add_argument("--data", default="", help="data set; default: the method's")
        one.add_argument("--split", choices=("val", "test"), default="test")
        one.add_argument("--samples", type=int, default=0, help="samples used; 0: all of the split")
        one.add_argument("--action", default="", help="only this action")
        one.add_argument("--batch_size", type=int, default=64)
        one.add_argument("--gpus", type=int, default=None, help="0 = CPU; default: one if there is")
        one.add_argument("--out", type=Path, default=Path("analysis"), help="folder")
        one.epilog = "Further flags --data.KEY VALUE are those of the data module."
        if kind == "tsne":
            one.add_argument("--perplexity", type=float, default=30.0)
            one.add_argument("--seed", type=int, default=0)
        if kind == "strips":
            one.set_defaults(samples=3)
            one.add_argument("--frames", type=int, default=5, help="frames shown; odd")
            one.add_argument("--fps", type=float, default=0.0,
                             help="rate of the frames; default: the window's")  # fmt: skip
        if kind == "pcp":
            one.add_argument("--rule", choices=("mean", "strict"), default="mean",
                             help="mean of the end errors (KTH), or both of them")  # fmt: skip
            one.add_argument("--threshold", type=float, default=0.5, help="share of the length")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs ``zoo analyse``; returns the exit status.

    Raises:
        ZooError: wrong input; nothing has been written then.
    """
    args, rest = _parser().parse_known_args(list(argv))
    for flag, value, least in (
        ("--samples", args.samples, 0), ("--batch_size", args.batch_size, 1),
    ):  # fmt: skip
        if value < least:
            raise UsageError(f"{flag} must be at least {least}, not {value}")
    stray = [w for w in rest if w.startswith("-") and not w.startswith("--data.")]
    if stray:
        raise UsageError(f"zoo analyse {args.kind}: unknown flag {stray[0].split('=')[0]}")
    from zoo.analysis import codes, limbs, parts, strips
    from zoo.analysis.models import open_models

    commands: dict[str, Callable[..., list[Path]]] = {
        "limb-ratios": limbs.analyse, "tsne": codes.analyse, "strips": strips.analyse,
        "pcp": parts.analyse,
    }  # fmt: skip
    models = open_models(args, rest)
    for path in commands[args.kind](models, args):
        print(path)
    return 0
