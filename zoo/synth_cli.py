"""``zoo data synth``: small licence-free copies of data set formats, made of synthetic people."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import OutputError, UsageError, suggest

__all__ = ["add_parser", "formats", "run", "write_copy"]


def formats() -> dict[str, str]:
    """Format -> its writing module, for all formats that can be written."""
    from datamodules.readers import READERS

    modules = {r.name: f"datamodules.synth.{r.module.rsplit('.', 1)[-1]}" for r in READERS}
    return {n: m for n, m in modules.items() if importlib.util.find_spec(m) is not None}


def add_parser(actions: Any) -> None:
    """Adds ``synth`` to the subcommands of ``zoo data``."""
    parser = actions.add_parser(
        "synth", help="write a small synthetic copy of a data set's format, free of any licence"
    )
    parser.add_argument("format", help="such as mpii; `zoo data synth list` lists them")
    parser.add_argument("--out", type=Path, help="the folder to write, new or empty")
    parser.add_argument("--subjects", type=int, help="how many people (default: the format's)")
    parser.add_argument("--frames", type=int, default=12, help="of each recording (default: 12)")
    parser.add_argument("--size", type=int, help="longer side of the pictures, px (default: real)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other people")


def run(args: argparse.Namespace) -> int:
    """Runs ``zoo data synth FORMAT --out DIR``; returns the exit status.

    Raises:
        ZooError: wrong input; nothing is then written.
    """
    if args.format == "list":
        from datamodules.readers import get_reader

        width = max(map(len, formats()))
        for name in formats():
            print(f"{name:<{width}}  {get_reader(name).what}")
        return 0
    if args.out is None:
        raise UsageError("zoo data synth: --out DIR is missing")
    write_copy(
        args.format, args.out, subjects=args.subjects, frames=args.frames, size=args.size,
        seed=args.seed,
    )  # fmt: skip
    files = [p for p in args.out.rglob("*") if p.is_file()]
    print(f"{args.out}: {len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB")
    return 0


def write_copy(
    name: str,
    out: Path,
    *,
    subjects: int | None = None,
    frames: int = 12,
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Writes a synthetic copy of a format; the folder is whole or not there.

    Args:
        name: of the format, a key of :func:`formats`.
        out: the folder, new or empty.
        subjects: the first so many of the format's people; ``None`` = all.
        frames: of each recording.
        size: longer side of the largest pictures in px; ``None`` = the real ones'.
        seed: another seed gives other people and motions.

    Raises:
        UsageError: no such format, or numbers that cannot be.
        OutputError: the folder has something in it, or cannot be written.
    """
    known = formats()
    if name not in known:
        raise UsageError(suggest(name, known, "format to write"))
    module = importlib.import_module(known[name])
    from datamodules.recordings import SYNTHETIC_MARK
    from datamodules.synth.people import H36M_SIZES, make_people

    everybody: Sequence[str] = getattr(module, "SUBJECTS", ("S1", "S5", "S9"))
    if subjects is not None and not 1 <= subjects <= len(everybody):
        raise UsageError(f"--subjects {subjects}: this format's copy has 1 to {len(everybody)}")
    if not 2 <= frames <= 10_000:
        raise UsageError(f"--frames {frames}: expected 2 to 10000")
    sizes: Sequence[tuple[int, int]] = getattr(module, "SIZES", H36M_SIZES)
    if size is not None:
        if not 64 <= size <= 8192:
            raise UsageError(f"--size {size}: expected 64 to 8192 px")
        share = size / max(max(s) for s in sizes)
        sizes = [(round(w * share), round(h * share)) for w, h in sizes]
    if seed < 0:
        raise UsageError(f"--seed {seed}: must not be negative")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out}: exists already and is not empty; name a new folder")
    people = make_people(
        everybody[:subjects], getattr(module, "ACTIONS", ("Directions", "Walking")),
        frames=frames, sizes=sizes, seed=seed,
    )  # fmt: skip
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        module.write(temporary, people)
        (temporary / SYNTHETIC_MARK).write_text(
            f"A synthetic copy of the format {name}, made of generated people: not the data set.\n"
        )
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
