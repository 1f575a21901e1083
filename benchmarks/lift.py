"""Speed of the PPCA lift: ``benchmarks/lift.py [--json FILE] [--threads N] [--processes N]``.

Poses a second of ``zoo.lifting.PPCALift`` (80 angles, float32) for several batch sizes, models and
visibilities, in CPU seconds of one thread unless ``--threads`` says otherwise. In the same run, for
scale: a plain loop that calls ``numpy.linalg.lstsq`` for every pose, component and angle, and the
machine's float32 matrix product, which bounds the stacked closed form
(2 * 80 * M * (D + 1) * 2J flops a pose). ``--processes N`` counts instead what N processes of one
thread each lift side by side by the clock, which is the faster way to use N cores.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from zoo.lifting import PPCALift
from zoo.prior import Prior

ANGLES = 80
BATCHES = (1, 64, 1024, 16384)
MODELS = ((1, 12), (1, 23), (3, 12), (3, 23))
HIDDEN = 0.15
VISIBILITY = ("all", "missing", "one pattern")


def seconds(call: Callable[[], object], clock: Callable[[], float], least: float) -> float:
    """Median seconds of a call over at least five calls and ``least`` seconds."""
    call()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < least:
        before = clock()
        call()
        times.append(clock() - before)
    return float(np.median(times))


def plain_loop(prior: Prior, points: np.ndarray, weights: np.ndarray) -> float:
    """Eq. 4 as it is written: one least squares a pose, component and angle; least cost."""
    best = math.inf
    w = np.repeat(weights, 2)
    for k in range(prior.components):
        shapes = torch.cat((prior.mean[k : k + 1], prior.basis[k])).numpy()
        sigma = np.sqrt(prior.noise[k].item() / prior.variances[k].numpy())
        ridge = np.zeros((len(sigma), len(sigma) + 3))
        ridge[:, 1 : 1 + len(sigma)] = np.diag(sigma)
        right = np.concatenate((w * points.ravel(), np.zeros(len(sigma))))
        for angle in np.arange(ANGLES) * (2 * math.pi / ANGLES):
            c, s = math.cos(angle), math.sin(angle)
            image = np.stack((c * shapes[..., 0] - s * shapes[..., 1], -shapes[..., 2]), -1)
            a = np.concatenate((image.reshape(len(shapes), -1).T, np.tile(np.eye(2), (17, 1))), 1)
            system = np.concatenate((w[:, None] * a, ridge))
            z = np.linalg.lstsq(system, right, rcond=None)[0]
            best = min(best, float(((system @ z - right) ** 2).sum()))
    return best


def seen_poses(
    prior: Prior, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 17, 2) noisy points in px, and (count, 17) weights with joints missing at random."""
    points = (prior.sample(count, generator)[..., [0, 2]] * torch.tensor([0.3, -0.3]) + 100).float()
    points = points + torch.randn(points.shape, generator=generator)
    some = (torch.rand(count, 17, generator=generator) >= HIDDEN).float()
    some[:, [0, 1, 4, 8, 10]] = 1
    some[0, [7, 12]] = 0  # a single pose lacks joints too
    return points, some


def count_poses(model: tuple[int, int], missing: bool, begin: float, length: float) -> int:
    """Poses that one process lifts from ``begin`` (of ``time.time``) on, in ``length`` seconds."""
    torch.set_num_threads(1)
    prior = Prior.placeholder(*model)
    lift = PPCALift(prior, rotations=ANGLES)
    points, some = seen_poses(prior, 4096, torch.Generator().manual_seed(0))
    weights = some if missing else None
    done = 0
    with torch.inference_mode():
        lift(points, weights)
        if time.time() > begin:
            raise SystemExit("a process was not ready in time; run it on a quieter machine")
        time.sleep(begin - time.time())
        while time.time() < begin + length:
            lift(points, weights)
            done += len(points)
    return done


def side_by_side(processes: int) -> None:
    """Prints what several processes lift together."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for model in ((1, 12), (3, 23)):
            for missing in (False, True):
                job = (model, missing, time.time() + 8.0, 5.0)
                done = sum(pool.starmap(count_poses, [job] * processes, chunksize=1))
                kind = "missing" if missing else "all"
                print(
                    f"M {model[0]} D {model[1]:>2} {kind:>7}: {done / 5.0:,.0f} poses/s", flush=True
                )


def main() -> None:
    """Measures and prints a table; writes the numbers with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="least time a measurement")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--processes", type=int, default=0, help="side by side, by the clock")
    options = parser.parse_args()
    if options.processes:
        side_by_side(options.processes)
        return
    torch.set_num_threads(options.threads)
    # A thread's own clock does not count what a neighbour takes away.
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    rows = []
    left = torch.randn(1024, 34, generator=generator)
    right = torch.randn(34, ANGLES * 13, generator=generator)
    square = torch.randn(1024, 1024, generator=generator)
    gflops = 2 * 1024**3 / seconds(lambda: square @ square, clock, options.seconds) / 1e9
    thin = 2 * left.numel() * right.shape[1] / seconds(lambda: left @ right, clock, 0.2) / 1e9
    print(f"threads {options.threads}; float32 product {gflops:.0f} GFLOP/s, thin {thin:.0f}")
    heads = ("M", "D", "joints", "batch", "poses/s", "x plain", "of bound")
    print(" ".join(f"{h:>{w}}" for h, w in zip(heads, (2, 3, 12, 6, 10, 8, 9), strict=True)))
    for components, basis in MODELS:
        prior = Prior.placeholder(components, basis)
        lift = PPCALift(prior, rotations=ANGLES)
        points, some = seen_poses(prior, max(BATCHES), generator)
        bound = gflops * 1e9 / (2 * ANGLES * components * (basis + 1) * 34)
        for kind in VISIBILITY:
            weights = {"all": None, "missing": some, "one pattern": some[:1].expand_as(some)}[kind]
            first = np.ones(17) if weights is None else weights[0].numpy()
            once = partial(plain_loop, prior, points[0].double().numpy(), first)
            plain = 1 / seconds(once, clock, options.seconds)
            for batch in BATCHES:
                y, w = points[:batch], None if weights is None else weights[:batch].contiguous()
                with torch.inference_mode():
                    rate = batch / seconds(partial(lift, y, w), clock, options.seconds)
                rows.append({
                    "components": components, "basis": basis, "joints": kind, "batch": batch,
                    "poses_per_second": rate, "over_plain_loop": rate / plain,
                    "of_stacked_product_bound": rate / bound, "plain_loop": plain,
                })  # fmt: skip
                print(
                    f"{components:>2} {basis:>3} {kind:>12} {batch:>6} {rate:>10,.0f} "
                    f"{rate / plain:>8,.0f} {rate / bound:>8.0%}",
                    flush=True,
                )
    if options.json:
        about = {"threads": options.threads, "gflops": gflops, "thin_gflops": thin}
        temporary = options.json.with_name(options.json.name + ".tmp")
        temporary.write_text(json.dumps({**about, "angles": ANGLES, "rows": rows}, indent=1) + "\n")
        os.replace(temporary, options.json)


if __name__ == "__main__":
    main()
