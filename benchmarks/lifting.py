"""2D to 3D: the pose prior of Tome et al. beside learnt regressors, under noise and missing joints.

``python benchmarks/lifting.py --mocap FILE [--out docs/results] [--work runs/lifting]``

One command for the page ``docs/results/lifting.md``:

1. *Choice*, on validation recordings and bodies alone: basis size D, components M and the penalty's
   gain, by held-out likelihood and by the error of the lift from noisy and incomplete 2D.
2. *Regressors*, trained by ``zoo fit`` on the training recordings and bodies (the runs lie under
   ``--work``; a finished one is not trained again): the residual network of ``examples``.
3. *Test*: all of these, and the shipped ``latent-ae-heatmap``, on the same 2D joints of unseen
   recordings and bodies.
4. *Three splits*: what the mixture adds to a single Gaussian, on other splits of the recordings.

A run of some ``--parts`` or ``--columns`` keeps what the page already has of the others.

People and cameras are those of the synthetic data set: perspective, four cameras at 1.5 m. Noise
is Gaussian, its standard deviation in px of a picture of 1000 px (about 0.24 px per mm); missing
joints are drawn evenly.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
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

CHOICES = ((23, 1), (30, 1), (23, 3), (30, 5))
"""(D, M) that are tried here; ``tome-prior.md`` has a finer grid, from true 2D."""
GAINS = (1.0, 2.0, 3.0)
NOISES = (0.0, 5.0, 10.0)
MISSING = tuple(range(7))
CASES = ((0.0, 0), (5.0, 0), (5.0, 3), (10.0, 3))
"""Noise in px and missing joints on which D, M and the gain are chosen."""
PX_PER_MM = 0.24
SPLIT_SEEDS = (0, 1, 2)
WORDS = "## What it says"
"""Heading of the page's written conclusion, which a run keeps."""
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
}  # fmt: skip
NETWORKS = {"heatmap-ae": "latent-ae-heatmap"}
"""Columns of networks whose weights ship."""
SHIPPED = {"single": "cmu-single", "mixture": "cmu-mixture"}
LABELS = {
    "single": "single Gaussian",
    "mixture": "mixture",
    "zoo.lift": "`zoo.lift`, camera unknown",
    "mlp": "residual MLP, true 2D",
    "mlp-aug": "residual MLP, augmented",
    "heatmap-ae": "`latent-ae-heatmap`",
}


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returned once, from a JSON file: an interrupted study goes on where it was."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(make(), indent=1) + "\n")
        print(f"{path.stem} done", flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, text: str) -> None:
    """Writes under a temporary name, then renames."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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


def choice_row(
    basis: int, components: int, train: Tensor, held_out: Tensor, views: Views
) -> dict[str, Any]:
    """Likelihood and errors of one D and M; its gain is that of least mean MPJPE over the cases."""
    start = time.perf_counter()
    prior = fit_prior(train.float(), components, basis, exemplar_distance=0.0)
    truth = views.truth()
    by_gain = {
        gain: [errors(by_prior(prior, views, *case, gain), truth) for case in CASES]
        for gain in GAINS
    }
    means = {g: float(np.mean([e["mpjpe"] for e in found])) for g, found in by_gain.items()}
    gain = min(GAINS, key=lambda g: means[g])
    return {
        "basis": basis, "components": components, "found": prior.components,
        "log_likelihood": float(prior.log_prob(held_out).mean()),
        "gain": gain, "cases": by_gain[gain],
        "mean": {m: float(np.mean([e[m] for e in by_gain[gain]])) for m in METRICS},
        "by_gain": {str(g): mean for g, mean in means.items()},
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


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


def compare(views: Views, run: Callable[[float, int], Tensor]) -> list[dict[str, Any]]:
    """Errors of a lifter in every cell of noise and missing joints."""
    truth = views.truth()
    return [
        {"noise_px": noise, "missing": missing, **errors(run(noise, missing), truth)}
        for noise in NOISES
        for missing in MISSING
    ]


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


def split_row(
    bank: MotionBank, step: int, seed: int, name: str, size: tuple[int, int, float]
) -> dict[str, Any]:
    """Errors of a model (M, D, gain) fitted and tested on one split of the recordings."""
    components, basis, gain = size
    train = split_poses(bank, seed, "train", step)
    test = split_poses(bank, seed, "test", step)
    prior = fit_prior(train.float(), components, basis, exemplar_distance=0.0)
    noisy = lift_errors(prior, test, noise_mm=5 / PX_PER_MM, gain=gain, max_pitch=0.0)
    return {
        "split": seed, "train": len(train), "test": len(test), "model": name,
        "components": prior.components, "basis": basis, "gain": gain,
        "log_likelihood": float(prior.log_prob(test).mean()),
        "cases": {
            "level camera, true 2D": lift_errors(prior, test, **LEVEL),
            "perspective, true 2D": lift_errors(prior, test, max_pitch=0.0),
            "perspective, 5 px": noisy,
        },
    }  # fmt: skip


# ---- the page ------------------------------------------------------------------------------------


def numbers(found: dict[str, Any], keys: Sequence[str] = METRICS) -> str:
    """MPJPE / N-MPJPE / PA-MPJPE."""
    return " / ".join(f"{found[k]:.1f}" for k in keys)


def markdown(result: dict[str, Any]) -> str:
    """The page of ``docs/results``."""
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
        "recordings and bodies were only measured.",
        "",
    ]
    if result["validation"]:
        lines += choice_lines(result)
    if result["test"]:
        lines += test_lines(result)
    if result["splits"]:
        lines += split_lines(result)
    return "\n".join(lines).rstrip() + "\n"


def choice_lines(result: dict[str, Any]) -> list[str]:
    """The section of basis size, components and gain."""
    count, rows = result["poses"], result["validation"]
    best = min(rows, key=lambda r: r["mean"]["mpjpe"])
    grid = ", ".join(f"{g:g}" for g in GAINS)
    lines = [
        "## Basis size, components and gain, on validation",
        "",
        f"{count['train']} training poses, {count['val']} validation samples; a finer grid, from "
        "true 2D, is in [tome-prior.md](tome-prior.md). The gain multiplies the penalty; the best "
        f"of {grid} is taken for each row. The mean is over 0, 5, 5 and 10 px of noise (the last "
        "two with 3 joints missing).",
        "",
        "| D | M | log-likelihood (nat/pose) | gain | mean over the cases | 0 px | "
        "10 px, 3 missing |",
        "|--:|--:|--:|--:|---|---|---|",
    ]
    for r in rows:
        mark = " **least**" if r is best else ""
        lines.append(
            f"| {r['basis']} | {r['found']} | {r['log_likelihood']:.1f} | {r['gain']:g} | "
            f"{numbers(r['mean'])}{mark} | {numbers(r['cases'][0])} | {numbers(r['cases'][-1])} |"
        )
    return [*lines, ""]


def test_lines(result: dict[str, Any]) -> list[str]:
    """The section of noise and missing joints."""
    shipped, names = result["shipped"], list(result["test"])
    lines = [
        "## Noise and missing joints, on unseen recordings and bodies",
        "",
        f"{result['poses']['test']} test samples. The priors are the shipped ones (single Gaussian "
        f"D = {shipped['single'][1]}; mixture M = {shipped['mixture'][0]}, "
        f"D = {shipped['mixture'][1]}), lifted with gain {result['gain']:g} and 80 angles, not "
        "refined. Their columns know the camera's rotation; `zoo.lift` and the regressors know "
        "nothing but the joints, but the regressors were trained on such cameras. All come from "
        "the same training recordings and bodies. Trainings:",
        "",
        *[f"* {LABELS[n]}: `{words}`" for n, words in result["trainings"].items()],
        "",
    ]
    for noise in NOISES:
        lines += [
            f"### {noise:g} px of noise",
            "",
            "| missing | " + " | ".join(LABELS[n] for n in names) + " |",
            "|--:|" + "---|" * len(names),
        ]
        for missing in MISSING:
            cells = [
                numbers(cell)
                for name in names
                for cell in result["test"][name]
                if (cell["noise_px"], cell["missing"]) == (noise, missing)
            ]
            lines.append(f"| {missing} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def split_lines(result: dict[str, Any]) -> list[str]:
    """The section of three splits."""
    rows = result["splits"]
    cases = list(rows[0]["cases"])
    sizes = "; ".join(
        f"{r['train']} and {r['test']} on split {r['split']}"
        for r in rows
        if r["model"] == "single"
    )
    lines = [
        "## What the mixture adds, on three splits",
        "",
        "Split 0 is the committed list; others deal the recordings out anew by a hash of seed and "
        "name (neighbouring takes together) and have bodies of their own. Sizes and gain are the "
        f"shipped ones (gain {result['gain']:g} with noise, 1 without; 80 angles, not refined; the "
        f"camera's rotation is known); priors are fitted anew. Training and test poses: {sizes}. "
        "The recordings that chose the sizes are among the test recordings of the other splits.",
        "",
        "| split | model | log-likelihood | " + " | ".join(cases) + " |",
        "|--:|---|--:|" + "---|" * len(cases),
    ]
    for r in rows:
        cells = " | ".join(numbers(case) for case in r["cases"].values())
        lines.append(
            f"| {r['split']} | {LABELS[r['model']]} (M = {r['components']}, D = {r['basis']}) | "
            f"{r['log_likelihood']:.1f} | {cells} |"
        )
    lines.append("")
    seeds = list(dict.fromkeys(r["split"] for r in rows))
    for case in cases:
        gains = []
        for seed in seeds:
            of = {r["model"]: r["cases"][case] for r in rows if r["split"] == seed}
            gains.append(" / ".join(f"{of['single'][k] - of['mixture'][k]:+.1f}" for k in METRICS))
        where = ", ".join(map(str, seeds))
        lines.append(f"* {case}: the mixture gains {'; '.join(gains)} mm on splits {where}.")
    return lines


def main() -> None:
    """Chooses, trains what is not trained, tests, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mocap", type=Path, required=True, help="motion file (.npz)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/lifting"),
                        help="trainings and finished parts; the same folder goes on")  # fmt: skip
    parser.add_argument("--step", type=int, default=4, help="use every N-th frame for the prior")
    parser.add_argument("--samples", type=int, default=800, help="test; half in validation")
    parser.add_argument("--parts", default="choice,test,splits", help="of the page")
    parser.add_argument("--columns", default=",".join(LABELS), help="of the test")
    parser.add_argument("--splits", default=",".join(map(str, SPLIT_SEEDS)), help="their seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = options.parts.split(",")
    bank = MotionBank.from_npz(options.mocap)
    step = options.step
    parts = options.work / f"parts-{options.samples}-{step}"  # of these settings alone

    def poses(split: Split) -> Tensor:
        return torch.as_tensor(prior_poses(bank, split)[::step]).double()

    train = poses("train")
    rows = []
    if "choice" in wanted:
        views, held_out = Views(options.mocap, "val", options.samples // 2), poses("val")
        for basis, components in CHOICES:
            make = functools.partial(choice_row, basis, components, train, held_out, views)
            rows.append(kept(parts / f"choice-D{basis}-M{components}.json", make))
    test = Views(options.mocap, "test", options.samples)
    columns = {}
    for name in options.columns.split(","):
        if "test" in wanted:
            make = functools.partial(compare, test, lifter(name, test, options))
            columns[name] = kept(parts / f"test-{name}.json", make)
    splits = []
    if "splits" in wanted:
        sizes = {
            name: (prior.components, prior.basis_size, GAIN)
            for name, prior in ((n, load_prior(p)) for n, p in SHIPPED.items())
        }
        for seed, name in itertools.product(map(int, options.splits.split(",")), sizes):
            make = functools.partial(split_row, bank, 2 * step, seed, name, sizes[name])
            splits.append(kept(parts / f"split-{seed}-{name}.json", make))
    priors = {name: load_prior(prior) for name, prior in SHIPPED.items()}
    result: dict[str, Any] = {
        "command": f"python benchmarks/lifting.py --mocap {options.mocap.name} "
        f"--parts {options.parts} --columns {options.columns}",
        "poses": {"train": len(train), "val": options.samples // 2, "test": len(test)},
        "validation": rows, "gain": GAIN,
        "shipped": {k: (p.components, p.basis_size) for k, p in priors.items()},
        "trainings": {
            n: " ".join(fit_words(n, options.mocap.name, options.work.as_posix()))
            for n in columns
            if n in REGRESSORS
        },
        "test": columns, "splits": splits,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    data, page = options.out / "lifting.json", options.out / "lifting.md"
    if data.exists():
        result = merged(json.loads(data.read_text(encoding="utf-8")), result)
    words = page.read_text(encoding="utf-8").partition(WORDS)[2] if page.exists() else ""
    write(data, json.dumps(result, indent=1) + "\n")
    write(page, markdown(result) + (f"\n{WORDS}{words}" if words else ""))


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The results of this run, and of earlier ones with as many poses what this one left out."""
    if old["poses"] != new["poses"]:
        return new
    both = {**new, "validation": new["validation"] or old["validation"]}
    both["splits"] = new["splits"] or old["splits"]
    for key in ("test", "trainings"):
        both[key] = {**old[key], **new[key]}
    if old["command"] not in new["command"]:
        both["command"] = f"{old['command']}` and `{new['command']}"
    return both


def lifter(name: str, views: Views, options: argparse.Namespace) -> Callable[[float, int], Tensor]:
    """A column of the test: poses for noise and missing joints. Trains a regressor if need be."""

    def run(noise: float, missing: int) -> Tensor:
        if name in SHIPPED:
            return by_prior(load_prior(SHIPPED[name]), views, noise, missing, GAIN)
        if name == "zoo.lift":
            return by_call(load_prior(), views, noise, missing)
        if name in NETWORKS:
            return by_model(load(NETWORKS[name]), views, noise, missing)
        model = regressor(name, options.mocap, options.work)
        return by_model(model, views, noise, missing)

    return run


if __name__ == "__main__":
    main()
