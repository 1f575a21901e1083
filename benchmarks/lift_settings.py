"""The settings of ``zoo.lift``, chosen on validation motion.

``python benchmarks/lift_settings.py --mocap FILE [--out docs/results]``

Validation recordings on validation bodies are seen by cameras of unknown pitch, as a detector would
see them: joints in its own layout (``coco_17``, ``mpii_16``), with noise and missing joints. One
setting after the other is changed while the others stay as they are in ``zoo.lift2d``: the gain,
the weights of joints that are taken from another layout, and the prior on the camera's pitch.
Writes ``lift-settings.md`` and ``.json``. No test recording is read.

The simulation is a guess in two respects. The face is put on the skeleton by head measures (ears
130 mm under the crown, 72 mm to the sides; nose 105 mm before them), and cameras look down by -5 to
20 degrees, evenly: the pitch prior can be no better than that.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.motion import MotionBank
from zoo import lift2d
from zoo.lifting import PPCALift
from zoo.prior_cli import prior_poses
from zoo.prior_files import load_prior
from zoo.skeleton import H36M_17, get_skeleton

LAYOUTS = ("coco_17", "mpii_16")
NOISE_PX = 5.0
MISSING = 2
PITCH = (math.radians(-5.0), math.radians(20.0))
EAR_DOWN, EAR_SIDE, NOSE_FORWARD = 130.0, 72.0, 105.0
GAINS = (1.0, 2.0, 3.0, 4.0)
WEIGHTS = (0.3, 0.7, 1.0)
PITCH_MEANS = (0.0, 5.0, 10.0)
PITCH_STDS = (6.0, 12.0, 24.0)


def face(pose: Tensor) -> dict[str, Tensor]:
    """Ears, eyes and nose (N, 3) of poses (N, 17, 3) in mm, from the head and the shoulders."""

    def joint(name: str) -> Tensor:
        return pose[:, H36M_17.index(name)]

    def unit(v: Tensor) -> Tensor:
        return v / v.norm(dim=-1, keepdim=True)

    up = unit(joint("head_top") - joint("nose"))
    left = joint("l_shoulder") - joint("r_shoulder")
    left = unit(left - (left * up).sum(-1, keepdim=True) * up)
    forward = torch.linalg.cross(left, up)
    level = joint("head_top") - EAR_DOWN * up
    eyes = level + 0.8 * NOSE_FORWARD * forward + 30.0 * up
    return {
        "l_ear": level + EAR_SIDE * left, "r_ear": level - EAR_SIDE * left,
        "nose": level + NOSE_FORWARD * forward,
        "l_eye": eyes + 32.0 * left, "r_eye": eyes - 32.0 * left,
    }  # fmt: skip


def detected(world: Tensor, layout: str, seed: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """What a detector sees: (N, J, 2) px, (N, J) visible, and the truth (N, 17, 3) mm."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(world), dtype=torch.float64, generator=generator)

    yaw, pitch, distance = uniform(0, 2 * math.pi), uniform(*PITCH), uniform(3500, 6000)
    c, s, zero = yaw.cos(), yaw.sin(), torch.zeros_like(yaw)
    turn = torch.stack((c, -s, zero, s, c, zero, zero, zero, zero + 1), -1).view(-1, 3, 3)
    camera = lift2d._pitched(pitch) @ turn
    world = world - world[:, :1]
    own = face(world)
    skeleton = get_skeleton(layout)
    same = {"upper_neck": "nose", "neck": "thorax", "pelvis": "pelvis"}
    columns = []
    for name in skeleton.joints:
        if layout == "coco_17" and name in own:
            columns.append(own[name])
        else:
            columns.append(world[:, H36M_17.index(same.get(name, name))])
    truth = world @ camera.mT
    points = torch.stack(columns, 1) @ camera.mT
    depth = points[..., 2:] + distance[:, None, None]
    image = 1145.0 * points[..., :2] / depth + 500.0
    image = image + NOISE_PX * torch.randn(image.shape, dtype=torch.float64, generator=generator)
    order = torch.rand(image.shape[:2], generator=generator).argsort(1).argsort(1)
    return image.numpy(), (order >= MISSING).numpy(), truth


@contextmanager
def settings(**changes: Any) -> Iterator[None]:
    """Other constants in ``zoo.lift2d`` for a while."""
    before = {name: getattr(lift2d, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(lift2d, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(lift2d, name, value)


def error(layer: PPCALift, views: dict[str, tuple[np.ndarray, np.ndarray, Tensor]]) -> list[float]:
    """MPJPE in mm by layout."""
    found = []
    for layout, (points, visible, truth) in views.items():
        pose = torch.as_tensor(
            lift2d.lift_arrays(points, layout, visible=visible, prior=layer).joints_3d
        ).double()
        found.append(float((pose - truth).norm(dim=-1).nanmean()))
    return found


def ways(name: str, at: int, weight: float) -> dict[str, Any]:
    """``_WAYS`` with another weight of one way to have a joint."""
    changed = copy.deepcopy(dict(lift2d._WAYS))
    parts = list(changed[name])
    parts[at] = (parts[at][0], weight)
    changed[name] = tuple(parts)
    return changed


def study(bank: MotionBank, count: int) -> dict[str, list[dict[str, Any]]]:
    """Errors of every setting, the others as committed."""
    poses = prior_poses(bank, "val")
    poses = poses[np.linspace(0, len(poses) - 1, count).astype(int)]
    world = torch.as_tensor(poses).double()
    views = {layout: detected(world, layout, seed) for seed, layout in enumerate(LAYOUTS)}
    prior = load_prior()

    def layer(gain: float = lift2d.GAIN) -> PPCALift:
        return PPCALift(prior, gain=gain, refine=lift2d._REFINE).eval()

    kept = layer()
    as_it_is = error(kept, views)
    out: dict[str, list[dict[str, Any]]] = {}

    def add(setting: str, value: float, committed: bool, found: list[float]) -> None:
        row = {
            "value": value,
            "committed": committed,
            "mpjpe": dict(zip(LAYOUTS, found, strict=True)),
        }
        out.setdefault(setting, []).append(row)
        print(setting, json.dumps(row), flush=True)

    for gain in GAINS:
        same = gain == lift2d.GAIN
        add("gain", gain, same, as_it_is if same else error(layer(gain), views))
    for name, alternatives in lift2d._WAYS.items():
        for at, (sources, weight) in enumerate(alternatives):
            if (
                not set(sources) <= set(face(world[:1]))
                or len(sources) + (sources[0] == "nose") < 2
            ):
                continue  # not on the simulated face, or one ear alone
            for value in sorted({*WEIGHTS, weight}):
                with settings(_WAYS=ways(name, at, value)):
                    found = as_it_is if value == weight else error(kept, views)
                add(f"weight of {name} from {' and '.join(sources)}", value, value == weight, found)
    for key, values in (("PITCH_MEAN", PITCH_MEANS), ("PITCH_STD", PITCH_STDS)):
        committed = getattr(lift2d, key)
        for value in values:
            with settings(**{key: math.radians(value)}):
                same = math.isclose(math.radians(value), committed)
                label = "mean" if key == "PITCH_MEAN" else "std"
                found = as_it_is if same else error(kept, views)
                add(f"{label} of the pitch, degrees", value, same, found)
    return out


def markdown(out: dict[str, list[dict[str, Any]]], command: str, count: int) -> str:
    """The page of ``docs/results``."""
    lines = [
        "# The settings of `zoo.lift`",
        "",
        f"Made by `{command}`: {count} poses of validation recordings on validation bodies, as a "
        f"detector might see them ({NOISE_PX:g} px of noise in a picture of 1000 px, {MISSING} "
        "joints missing, unknown camera that looks down by -5 to 20 degrees). MPJPE in mm, by "
        "layout of the detector. One setting is changed, the others are the committed ones.",
        "",
        "**Development data**: these recordings, and the photographs of annotated people that the "
        "settings were first looked at with, are not test data for `zoo.lift`. How the face sits "
        "on the skeleton and how cameras are held are assumptions of the script. The weights of "
        "MPII's and OpenPose's neck and crown cannot be judged by it: it puts them on the prior's "
        "own joints.",
        "",
        "| setting | value | " + " | ".join(LAYOUTS) + " | mean |",
        "|---|--:|" + "--:|" * (len(LAYOUTS) + 1),
    ]
    for setting, rows in out.items():
        means = [float(np.mean(list(r["mpjpe"].values()))) for r in rows]
        for row, mean in zip(rows, means, strict=True):
            marks = " committed" * row["committed"] + " *least*" * (mean == min(means))
            cells = " | ".join(f"{v:.2f}" for v in row["mpjpe"].values())
            lines.append(f"| {setting} | {row['value']:g}{marks} | {cells} | {mean:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the study and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mocap", type=Path, required=True, help="motion file (.npz)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--poses", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    out = study(MotionBank.from_npz(options.mocap), options.poses)
    command = f"python benchmarks/lift_settings.py --mocap {options.mocap.name}"
    options.out.mkdir(parents=True, exist_ok=True)
    files = {
        "lift-settings.json": json.dumps(out, indent=1) + "\n",
        "lift-settings.md": markdown(out, command, options.poses),
    }
    for name, text in files.items():
        temporary = options.out / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, options.out / name)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
