"""``make demo``: fit a small method on synthetic people, test it, predict on pictures.

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


def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; emulated it is slower than float32."""
    import torch

    if torch.cuda.is_available():
        return True
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status.

    Args:
        argv: ``--run DIR`` (results go there) and ``--minutes M`` (cap on the training).
    """
    parser = argparse.ArgumentParser(prog="python -m zoo.demo", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--minutes", type=float, default=3.5, help="cap on the training time")
    parser.add_argument("--samples", type=int, default=10240, help="training images an epoch")
    args = parser.parse_args(argv)
    from datamodules.synthetic import make_test_images
    from zoo.runs import new_run

    run = new_run(args.run.parent, args.run.name)
    started = time.monotonic()
    seconds = round(args.minutes * 60)
    try:
        # The recipe's network, a faster optimiser, the paper's schedule at 10/28 of its length.
        _zoo(
            "fit", "--method", "park", "--recipe", "small", "--run", str(run),
            "--model.epochs", "10", "--model.lr_halve_every", "2", "--model.lambda_switch", "6",
            "--model.optimizer", "adamw", "--model.lr", "0.001",
            "--data.train_samples", str(args.samples), "--data.fresh_epochs", "2",
            "--data.val_samples", "500", "--data.flip", "0.5",
            "--trainer.precision", "bf16-mixed" if _has_bfloat16() else "32-true",
            "--trainer.max_time", f"00:00:{seconds // 60:02d}:{seconds % 60:02d}",
        )  # fmt: skip
        checkpoint = str(run / "checkpoints" / "best.ckpt")
        _zoo(
            "test", "--method", "park", "--ckpt_path", checkpoint, "--run", str(run / "test"),
            "--data.test_samples", "1000",
        )  # fmt: skip
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
