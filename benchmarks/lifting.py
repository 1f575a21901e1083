"""2D to 3D: the pose prior of Tome et al. beside learnt regressors, under noise and missing joints.

``python benchmarks/lifting.py --mocap FILE [--out docs/results] [--work runs/lifting]``

One command for the page ``docs/results/lifting.md``:

1. *Choice*, on validation recordings and bodies alone: basis size D, components M and the penalty's
   gain, by held-out likelihood and by the error of the lift from noisy and incomplete 2D.
2. *Regressors*, trained by ``zoo fit`` on the training recordings and bodies (the runs lie under
   ``--work``; a finished one is not trained again): the residual network of ``examples`` and
   ``latent-ae-heatmap``.
3. *Test*: everything on the same 2D joints of unseen recordings and bodies.
4. *Three splits*: what the mixture adds to a single Gaussian, on other splits of the recordings.

People and cameras are those of the synthetic data set: perspective, four cameras at 1.5 m. Noise
is Gaussian, its standard deviation in px of a picture of 1000 px (about 0.24 px per mm); missing
joints are drawn evenly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tome_prior import LEVEL, errors, lift_errors
from torch import Tensor

from datamodules.bodies import PARENTS, bodies, retarget
from datamodules.motion import MotionBank
from datamodules.splits import Split, base_name, split_of
from datamodules.synthetic import SyntheticDataModule, render_batch
from zoo.base import InputSpec, PoseModule
from zoo.batch import PoseBatch
from zoo.checkpoint import load
from zoo.lift2d import GAIN, lift_arrays
from zoo.lifting import PPCALift
from zoo.prior import Prior, fit_prior
from zoo.prior_cli import prior_poses
from zoo.prior_files import load_prior

BASES = (12, 23, 30, 36)
COMPONENTS = (1, 3, 5)
GAINS = (1.0, 2.0, 3.0)
NOISES = (0.0, 5.0, 10.0)
MISSING = tuple(range(7))
CASES = ((0.0, 0), (5.0, 0), (5.0, 3), (10.0, 3))
"""Noise in px and missing joints on which D, M and the gain are chosen."""
PX_PER_MM = 0.24
SPLIT_SEEDS = (0, 1, 2)
METRICS = ("mpjpe", "n_mpjpe", "pa_mpjpe")
_TAKES = 5  # neighbouring takes of one action stay together

REGRESSORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mlp": ("residual-lifter", ()),
    "mlp-aug": (
        "residual-lifter",
        (
            "--weights", "{work}/mlp/checkpoints/best.ckpt", "--model.noise_2d", "2.5",
            "--model.missing_2d", "6", "--model.epochs", "12", "--model.lr", "0.0005",
            "--model.decay", "0.8",
        ),
    ),
    "heatmap-ae": (
        "latent-ae-heatmap",
        (
            "--model.noise_2d", "0.6", "--model.missing_2d", "0.1", "--data.train_samples", "10000",
        ),
    ),
}  # fmt: skip
LABELS = {
    "single": "single Gaussian",
    "mixture": "mixture",
    "zoo.lift": "`zoo.lift`, camera unknown",
    "mlp": "residual MLP, true 2D",
    "mlp-aug": "residual MLP, augmented",
    "heatmap-ae": "`latent-ae-heatmap`, augmented",
}


# ---- the same 2D joints for all ------------------------------------------------------------------


class Views:
    """Samples of one split: 2D joints of any noise and visibility, in the crop of any method."""

    def __init__(self, mocap: Path, split: Split, count: int) -> None:
        self.data = SyntheticDataModule(
            str(mocap), val_samples=count, test_samples=count, input_spec=InputSpec("keypoints")
        )
        self.people = {"val": self.data.val_set, "test": self.data.test_set}[split]
        self.samples = self.people.__getitems__(range(len(self.people)))
        self.seed = {"val": 1, "test": 2}[split]
        self._clean: dict[int, PoseBatch] = {}

    def __len__(self) -> int:
        return len(self.people)

    def batch(self, noise: float, missing: int, spec: InputSpec) -> PoseBatch:
        """The batch in a crop of ``spec``; the same noise in px of the picture for every crop."""
        if spec.image_size not in self._clean:
            size = InputSpec("keypoints", spec.image_size, 1, 10.0, spec.crop_scale)
            self._clean[spec.image_size] = render_batch(self.samples, size)
        clean = cast(dict[str, Tensor], self._clean[spec.image_size])
        shape = clean["joints_2d"].shape
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.randn(shape, generator=generator)
        order = torch.rand(shape[:3], generator=generator).argsort(-1).argsort(-1)
        px = clean["crop_to_image"][:, :, None, :1, :1].squeeze(-1)  # picture px a crop px
        out = {**clean, "joints_2d": clean["joints_2d"] + noise * draw / px}
        out["valid_2d"] = order >= missing
        return cast(PoseBatch, out)

    def truth(self) -> Tensor:
        """(N, 17, 3) mm, float64."""
        return self.batch(0.0, 0, InputSpec("keypoints"))["joints_3d"][:, 0].double()


def by_prior(prior: Prior, views: Views, noise: float, missing: int, gain: float) -> Tensor:
    """Poses of the lift (80 angles, not refined), the camera's rotation known."""
    batch = views.batch(noise, missing, InputSpec("keypoints"))
    lift = PPCALift(prior, gain=gain)
    with torch.inference_mode():
        seen = batch["valid_2d"][:, 0].float()
        return lift(batch["joints_2d"][:, 0], seen, batch["world_to_camera"]).pose_3d.double()


def by_call(prior: Prior, views: Views, noise: float, missing: int) -> Tensor:
    """Poses of :func:`zoo.lift`, which is told nothing but the joints."""
    batch = views.batch(noise, missing, InputSpec("keypoints"))
    found = lift_arrays(
        batch["joints_2d"][:, 0], "h36m_17", visible=batch["valid_2d"][:, 0], prior=prior
    )
    return torch.as_tensor(found.joints_3d).double()


def by_model(model: PoseModule, views: Views, noise: float, missing: int) -> Tensor:
    """Poses of a trained method that takes keypoints."""
    batch = cast(dict[str, Tensor], views.batch(noise, missing, model.input_spec))
    poses = []
    with torch.inference_mode():
        for start in range(0, len(views), 500):
            part = {k: v[start : start + 500] for k, v in batch.items()}
            poses.append(model(cast(PoseBatch, part))["pred_3d"][:, 0])
    return torch.cat(poses).double()


# ---- 1. the choice, on validation ----------------------------------------------------------------


def choose(train: Tensor, held_out: Tensor, views: Views) -> list[dict[str, Any]]:
    """A row for each D and M; its gain is the one of least mean MPJPE over :data:`CASES`."""
    rows, truth = [], views.truth()
    for basis in BASES:
        for components in COMPONENTS:
            start = time.perf_counter()
            prior = fit_prior(train.float(), components, basis)
            by_gain = {}
            for gain in GAINS:
                found = [errors(by_prior(prior, views, *case, gain), truth) for case in CASES]
                by_gain[gain] = found
            gain = min(GAINS, key=lambda g: np.mean([e["mpjpe"] for e in by_gain[g]]))
            row = {
                "basis": basis, "components": components, "found": prior.components,
                "log_likelihood": float(prior.log_prob(held_out).mean()),
                "gain": gain, "cases": by_gain[gain],
                "mean": {m: float(np.mean([e[m] for e in by_gain[gain]])) for m in METRICS},
                "by_gain": {
                    str(g): float(np.mean([e["mpjpe"] for e in found]))
                    for g, found in by_gain.items()
                },
                "seconds": time.perf_counter() - start,
            }  # fmt: skip
            rows.append(row)
            print(json.dumps({k: row[k] for k in row if k != "cases"}), flush=True)
    return rows


# ---- 2. regressors -------------------------------------------------------------------------------


def fit_words(name: str, mocap: Path | str, work: Path | str) -> list[str]:
    """The command line of a regressor's training, without its run folder."""
    method, flags = REGRESSORS[name]
    return [
        "zoo", "fit", "--method", method, "--recipe", "small", "--data.mocap", str(mocap),
        "--data.val_samples", "2000", "--gpus", "0", "--seed_everything", "0",
        *(flag.format(work=work) for flag in flags),
    ]  # fmt: skip


def regressor(name: str, mocap: Path, work: Path) -> PoseModule:
    """The trained method: its best weights by validation; trains it if there are none."""
    best = work / name / "checkpoints" / "best.ckpt"
    done = work / name / "finished"
    if not done.exists():
        words = [sys.executable, "-m", "zoo", *fit_words(name, mocap, work)[1:]]
        last = best.with_name("last.ckpt")
        extra = ["--ckpt_path", str(last)] if last.exists() else []
        print(f"training {name}", flush=True)
        subprocess.run([*words, "--run", str(work / name), *extra], check=True)
        done.touch()
    return load(best)


# ---- 3. test -------------------------------------------------------------------------------------


def compare(
    views: Views, lifters: dict[str, Callable[[float, int], Tensor]]
) -> dict[str, list[dict[str, Any]]]:
    """Errors of every lifter in every cell of noise and missing joints."""
    truth = views.truth()
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in lifters}
    for noise in NOISES:
        for missing in MISSING:
            for name, run in lifters.items():
                found = errors(run(noise, missing), truth)
                out[name].append({"noise_px": noise, "missing": missing, **found})
            cells = {name: round(rows[-1]["mpjpe"], 1) for name, rows in out.items()}
            print(json.dumps({"noise": noise, "missing": missing, **cells}), flush=True)
    return out


# ---- 4. three splits -----------------------------------------------------------------------------


def other_split(bank: MotionBank, seed: int) -> Callable[[str], Split]:
    """Split 0 is the committed list; others deal the recordings out by a hash of (seed, name).

    Neighbouring takes of an action stay together. By frames, 20 % test and 12 % validation.
    """
    if seed == 0:
        return split_of

    def group(name: str) -> str:
        found = re.fullmatch(r"(.*walking_extra/walking_)(\d+)", base_name(name))
        return f"{found[1]}{int(found[2]) // _TAKES}" if found else base_name(name)

    def order(key: str) -> str:
        return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()

    frames: dict[str, int] = {}
    for name, length in zip(bank.names, bank.lengths.tolist(), strict=True):
        frames[group(name)] = frames.get(group(name), 0) + length
    parts: dict[str, Split] = {}
    total, dealt = sum(frames.values()), 0
    for key in sorted(frames, key=order):
        share = dealt / total
        parts[key] = "test" if share < 0.20 else "val" if share < 0.32 else "train"
        dealt += frames[key]
    return lambda name: parts[group(name)]


def split_poses(bank: MotionBank, seed: int, split: Split, step: int) -> Tensor:
    """(N, 17, 3) mm: every ``step``-th frame of a split, on bodies that only this split has."""
    part_of = other_split(bank, seed)
    part = bank.subset(name for name in bank.names if part_of(name) == split)
    poses = part.clips(*part.centres(step), 1, part.fps)
    lengths = np.stack([body.lengths for body in bodies(split, seed)])
    who = np.random.default_rng(seed).integers(0, len(lengths), len(poses))
    worn = retarget(poses, PARENTS, lengths[who][:, None])
    return torch.as_tensor(worn[:, 0], dtype=torch.float64)


def three_splits(
    bank: MotionBank, step: int, models: dict[str, tuple[int, int, float]]
) -> list[dict[str, Any]]:
    """Errors of models (M, D, gain) on three splits of the recordings."""
    rows = []
    for seed in SPLIT_SEEDS:
        train = split_poses(bank, seed, "train", step)
        test = split_poses(bank, seed, "test", step)
        for name, (components, basis, gain) in models.items():
            prior = fit_prior(train.float(), components, basis)
            cases = {
                "level camera, true 2D": lift_errors(prior, test, **LEVEL),
                "perspective, true 2D": lift_errors(prior, test, max_pitch=0.0),
                "perspective, 5 px": lift_errors(
                    prior, test, noise_mm=5 / PX_PER_MM, gain=gain, max_pitch=0.0
                ),
            }
            rows.append({
                "split": seed, "train": len(train), "test": len(test), "model": name,
                "components": prior.components, "basis": basis, "gain": gain,
                "log_likelihood": float(prior.log_prob(test).mean()), "cases": cases,
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


# ---- the page ------------------------------------------------------------------------------------


def numbers(found: dict[str, Any], keys: Sequence[str] = METRICS) -> str:
    """MPJPE / N-MPJPE / PA-MPJPE."""
    return " / ".join(f"{found[k]:.1f}" for k in keys)


def markdown(result: dict[str, Any]) -> str:
    """The page of ``docs/results``."""
    count, best, single = result["poses"], result["chosen"], result["chosen_single"]
    shipped = result["shipped"]
    grid = ", ".join(f"{g:g}" for g in GAINS)
    lines = [
        "# Lifting 2D joints: the pose prior and learnt regressors",
        "",
        f"Made by `{result['command']}`. Motion: the CMU recordings (mocap.cs.cmu.edu), split by "
        "recording and body. People and cameras are those of the synthetic data: perspective, "
        "four cameras at 1.5 m. Errors are MPJPE / N-MPJPE / PA-MPJPE in mm, 17 joints, root at "
        "zero. Noise is the standard deviation in px of a picture of 1000 px, in which a person "
        "is about 400 px tall (10 px are 42 mm). No picture is involved.",
        "",
        "**Development data.** The recordings of `datamodules/motion_splits.txt`: everything here "
        "was fitted to the training recordings and chosen on the validation recordings; test "
        "recordings and bodies were only measured. The first section is validation, the others "
        "are test.",
        "",
        "## Basis size, components and gain, on validation",
        "",
        f"{count['train']} training poses, {count['val']} validation samples. The gain multiplies "
        f"the penalty; the best of {grid} is taken for each row. The mean is over 0, 5, 5 and "
        "10 px of noise (the last two with 3 joints missing).",
        "",
        "| D | M | components found | log-likelihood (nat/pose) | gain | mean over the cases | "
        "0 px | 10 px, 3 missing |",
        "|--:|--:|--:|--:|--:|---|---|---|",
    ]
    chosen = (best["basis"], best["components"])
    for r in result["validation"]:
        mark = " **chosen**" if (r["basis"], r["components"]) == chosen else ""
        lines.append(
            f"| {r['basis']} | {r['components']} | {r['found']} | {r['log_likelihood']:.1f} | "
            f"{r['gain']:g} | {numbers(r['mean'])}{mark} | {numbers(r['cases'][0])} | "
            f"{numbers(r['cases'][-1])} |"
        )
    lines += [
        "",
        f"Least mean MPJPE: M = {best['components']}, D = {best['basis']}, gain {best['gain']:g}; "
        f"among single Gaussians D = {single['basis']}, gain {single['gain']:g}. Shipped and "
        f"measured below: mixture M = {shipped['mixture'][0]}, D = {shipped['mixture'][1]}; single "
        f"Gaussian D = {shipped['single'][1]}; gain {result['gain']:g}.",
        "",
        "## Test: unseen recordings and bodies",
        "",
        f"{count['test']} samples. The prior's columns know the camera's rotation, `zoo.lift` and "
        "the regressors know nothing but the joints (the regressors were trained on such cameras). "
        "All were made from the same training recordings and bodies. *True 2D*: trained on exact "
        "and complete joints. *Augmented*: trained with noise and missing joints, by",
        "",
        *[f"* {LABELS[n]}: `{result['trainings'][n]}`" for n in REGRESSORS],
        "",
    ]
    names = list(result["test"])
    for noise in NOISES:
        lines += [
            f"### {noise:g} px of noise",
            "",
            "| missing | " + " | ".join(LABELS[n] for n in names) + " |",
            "|--:|" + "---|" * len(names),
        ]
        for missing in MISSING:
            cells = []
            for name in names:
                cell = next(
                    c for c in result["test"][name]
                    if c["noise_px"] == noise and c["missing"] == missing
                )  # fmt: skip
                cells.append(numbers(cell))
            lines.append(f"| {missing} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "## What the mixture adds, on three splits",
        "",
        "Split 0 is the committed list; 1 and 2 deal the recordings out anew by a hash of seed and "
        "name (neighbouring takes together) and have bodies of their own. Sizes and gains are "
        "those chosen above, so the recordings that chose them are among the test recordings of "
        "splits 1 and 2. The first two cases use gain 1 and 80 angles without refinement.",
        "",
        "| split | model | log-likelihood | " + " | ".join(result["splits"][0]["cases"]) + " |",
        "|--:|---|--:|" + "---|" * len(result["splits"][0]["cases"]),
    ]
    for r in result["splits"]:
        cells = [numbers(case) for case in r["cases"].values()]
        lines.append(
            f"| {r['split']} | {r['model']} (M = {r['components']}, D = {r['basis']}) | "
            f"{r['log_likelihood']:.1f} | " + " | ".join(cells) + " |"
        )
    lines.append("")
    for case in result["splits"][0]["cases"]:
        gains = []
        for seed in SPLIT_SEEDS:
            of = {r["model"]: r["cases"][case] for r in result["splits"] if r["split"] == seed}
            one, more = of["single Gaussian"], of["mixture"]
            gains.append(" / ".join(f"{one[k] - more[k]:+.1f}" for k in METRICS))
        lines.append(f"* {case}: the mixture gains {'; '.join(gains)} mm on splits 0, 1, 2.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Chooses, trains what is not trained, tests, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mocap", type=Path, required=True, help="motion file (.npz)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/lifting"))
    parser.add_argument("--step", type=int, default=4, help="use every N-th frame in the choice")
    parser.add_argument("--samples", type=int, default=1200, help="test; half in validation")
    parser.add_argument("--rows", type=Path, help="take the validation table of this earlier JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bank = MotionBank.from_npz(options.mocap)
    train = torch.as_tensor(prior_poses(bank, "train")[:: options.step]).double()
    held_out = torch.as_tensor(prior_poses(bank, "val")[:: options.step]).double()
    views = Views(options.mocap, "val", options.samples // 2)
    rows = (
        json.loads(options.rows.read_text())["validation"]
        if options.rows
        else choose(train, held_out, views)
    )
    best = min(rows, key=lambda r: r["mean"]["mpjpe"])
    alone = min((r for r in rows if r["components"] == 1), key=lambda r: r["mean"]["mpjpe"])
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"validation": rows}
    write(options.out / "lifting.json", json.dumps(result, indent=1) + "\n")
    print(f"chosen M = {best['components']}, D = {best['basis']}, gain {best['gain']}", flush=True)

    models = {name: regressor(name, options.mocap, options.work) for name in REGRESSORS}
    priors = {"single": load_prior("cmu-single"), "mixture": load_prior("cmu-mixture")}
    test = Views(options.mocap, "test", options.samples)
    lifters: dict[str, Callable[[float, int], Tensor]] = {
        name: lambda n, m, p=prior: by_prior(p, test, n, m, GAIN) for name, prior in priors.items()
    }
    lifters["zoo.lift"] = lambda n, m: by_call(priors["mixture"], test, n, m)
    for name, model in models.items():
        lifters[name] = lambda n, m, f=model: by_model(f, test, n, m)
    result.update({
        "command": f"python benchmarks/lifting.py --mocap {options.mocap.name}",
        "poses": {"train": len(train), "val": len(views), "test": len(test)},
        "chosen": best, "chosen_single": alone, "gain": GAIN,
        "shipped": {k: (p.components, p.basis_size) for k, p in priors.items()},
        "trainings": {
            n: " ".join(fit_words(n, options.mocap.name, options.work.name)) for n in REGRESSORS
        },
        "test": compare(test, lifters),
        "splits": three_splits(bank, options.step, {
            "single Gaussian, D = 30": (1, 30, alone["gain"]),
            "single Gaussian": (1, alone["basis"], alone["gain"]),
            "mixture": (best["components"], best["basis"], best["gain"]),
        }),
    })  # fmt: skip
    write(options.out / "lifting.json", json.dumps(result, indent=1) + "\n")
    write(options.out / "lifting.md", markdown(result))


def write(path: Path, text: str) -> None:
    """Writes under a temporary name, then renames."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
