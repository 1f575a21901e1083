"""Speed of the self-correction: ``python benchmarks/correction.py [--json FILE] [--device cuda]``.

Frames a second of ``zoo.correction`` by its three ways, against the plain loop (copies of the
modules and a torch optimiser for each frame) in the same run, and the cost of a corrected frame
relative to the model's forward pass. Two steps are taken for every frame: the rules that stop early
are off. Then the running time by module, as in Table 4 of Wang et al. 2019 (GTX 1080: 19 + 19 + 13
ms of 51 an image). CPU seconds of one thread, or the clock on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import yaml

from zoo.batch import FRAME_KEYS, PoseBatch
from zoo.correction import Correction, correct_terms
from zoo.methods.ssc import SSC
from zoo.registry import resource
from zoo.testing.people import random_batch, random_poses

EVERY_STEP = {"steps": 2, "eps_mm": 0.0, "tau_mm": math.inf, "dead_zone": 0.0}
CASES = (
    ("sgd", "C+P", "rank-one"), ("sgd", "C+P", "stacked"), ("sgd", "C", "rank-one"),
    ("sgd", "C", "stacked"), ("adam", "C+P", "stacked"), ("adam", "C", "stacked"),
)  # fmt: skip


def timer(device: torch.device) -> Callable[[Callable[[], object], float], float]:
    """``seconds(call, least)``: the best time of a call."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter

    def seconds(call: Callable[[], object], least: float) -> float:
        call()
        times: list[float] = []
        while not times or (len(times) < 3 and sum(times) < 4 * least) or sum(times) < least:
            begin = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - begin)
        return min(times)

    return seconds


def build(recipe: str, device: torch.device) -> SSC:
    torch.manual_seed(0)
    settings = yaml.safe_load(resource(f"zoo/recipes/ssc/{recipe}.yaml").read_text()) or {}
    model = SSC(**settings.get("model", {}))
    model.fit_statistics(random_poses(model.input_spec, model.skeleton))
    return model.to(device).eval()


def measure(recipe: str, batches: list[int], device: torch.device, least: float) -> dict[str, Any]:
    seconds = timer(device)
    model = build(recipe, device)
    heavy = recipe != "small" and device.type == "cpu"
    batch = random_batch(model.input_spec, model.skeleton, 1 if heavy else 16, device=device)
    if heavy:  # one frame: the trunk alone has 45 billion multiply-adds
        batch = cast(PoseBatch, {k: cast(torch.Tensor, v)[:, :1] for k, v in batch.items()
                                 if k in FRAME_KEYS})  # fmt: skip
    frames = batch["image"].shape[0] * batch["image"].shape[1]
    with torch.no_grad():
        terms = model.correction_terms(batch)
        features = model._features(batch["image"])
        modules = {
            "2D sub-network": seconds(
                lambda: model.head(model.trunk(batch["image"].flatten(0, 1))), least
            ),
            "2D-to-3D transformer": seconds(lambda: model.lift(features), least),
        }
        forward = seconds(lambda: model(batch), least) / frames
    own = Correction(**EVERY_STEP)
    modules["projector with correction"] = seconds(lambda: correct_terms(model, terms, own), least)
    ms = {name: 1000 * value / frames for name, value in modules.items()}
    print(f"\n{recipe}: {model.hparams['projector_width']} units, forward {1000 * forward:.3f} ms")
    for name, value in ms.items():
        print(f"  {name:<27}{value:9.3f} ms an image")
    print(f"{'optimizer':>10} {'update':>6} {'way':>9} {'batch':>6} {'frames/s':>9} "
          f"{'x loop':>7} {'of forward':>11}")  # fmt: skip
    rows = []
    flat = [terms.pose.flatten(0, 1), terms.points.flatten(0, 1), terms.valid.flatten(0, 1)]
    for optimizer, update, way in CASES:
        setting = Correction(optimizer=optimizer, lr=1e-5, update=update, **EVERY_STEP)
        for size in batches:
            index = torch.arange(size, device=device) % len(flat[0])
            pose, points, valid = (x[index][:, None] for x in flat)
            some = terms._replace(pose=pose, points=points, valid=valid)
            rate = size / seconds(lambda: correct_terms(model, some, setting, how=way), least)  # noqa: B023
            one = terms._replace(pose=pose[:4], points=points[:4], valid=valid[:4])
            count = min(4, size)
            loop = count / seconds(lambda: correct_terms(model, one, setting, how="loop"), least)  # noqa: B023
            rows.append({
                "optimizer": optimizer, "update": update, "way": way, "batch": size,
                "frames_per_second": rate, "over_loop": rate / loop, "loop": loop,
                "of_forward": 1 / rate / forward,
            })  # fmt: skip
            print(
                f"{optimizer:>10} {update:>6} {way:>9} {size:>6} {rate:>9,.0f} {rate / loop:>7.1f} "
                f"{1 / rate / forward:>11.1%}", flush=True,
            )  # fmt: skip
    return {"recipe": recipe, "forward_ms": 1000 * forward, "modules_ms": ms, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipes", nargs="+", default=["small", "paper"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=0.5, help="least time a measurement")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    found = [measure(r, options.batches, device, options.seconds) for r in options.recipes]
    if options.json:
        temporary = options.json.with_name(options.json.name + ".tmp")
        temporary.write_text(json.dumps({"device": options.device, "recipes": found}, indent=1))
        os.replace(temporary, options.json)


if __name__ == "__main__":
    main()
