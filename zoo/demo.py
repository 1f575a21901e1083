"""``make demo``: test the shipped network, train it on, test it again, predict on pictures.

The shipped ``park.small`` was trained on people who move like motion capture; the demo fits it to
those of the built-in generator, whom it has not seen. From nothing, the few minutes of a demo end
with a network that has just begun to learn (docs/results/park-weights.md has the whole course).

Runs the same commands a user would type, printing each, and prints the two results' paths last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def _zoo(*words: str) -> None:
    print("\n$ zoo " + " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "zoo", *words], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status.

    Args:
        argv: ``--run DIR`` (results go there) and ``--minutes M`` (cap on the training).
    """
    parser = argparse.ArgumentParser(prog="python -m zoo.demo", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--minutes", type=float, default=3.0, help="cap on the training time")
    parser.add_argument("--samples", type=int, default=5120, help="training images an epoch")
    args = parser.parse_args(argv)
    from datamodules.synthetic import make_test_images
    from zoo.processor import has_bfloat16
    from zoo.runs import new_run

    run = new_run(args.run.parent, args.run.name)
    started = time.monotonic()
    seconds = round(args.minutes * 60)
    test = ("test", "--method", "park", "--data.test_samples", "1000")
    try:
        _zoo(*test, "--run", str(run / "test-before"))
        _zoo(
            "fit", "--method", "park", "--recipe", "small", "--weights", "park.small",
            "--run", str(run), "--model.epochs", "4", "--model.lr_halve_every", "1",
            "--model.lambda_switch", "0", "--model.optimizer", "adamw", "--model.lr", "0.0005",
            "--data.train_samples", str(args.samples), "--data.val_samples", "500",
            "--data.flip", "0.5", "--trainer.precision",
            "bf16-mixed" if has_bfloat16() else "32-true",
            "--trainer.max_time", f"00:00:{seconds // 60:02d}:{seconds % 60:02d}",
        )  # fmt: skip
        best, last = (run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
        checkpoint = str(best if best.exists() else last)  # no best one before a validation
        _zoo(*test, "--ckpt_path", checkpoint, "--run", str(run / "test"))
        pictures = make_test_images(4, run / "pictures")
        out = run / "predictions"
        _zoo(
            "predict", *map(str, pictures), "--method", "park", "--ckpt_path", checkpoint,
            "--flip-test", "--out", str(out),
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    print(f"\nfinished in {time.monotonic() - started:.0f} s")
    print(f"overlay picture: {sorted(out.glob('*.png'))[0]}")
    print(f"poses: {out / 'poses.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
