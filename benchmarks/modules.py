"""Running time by module: ``python benchmarks/modules.py [NAME ...] [--device cuda]``.

Milliseconds an image that the shipped networks spend in each of their parts, as in Table 4 of
Wang et al. 2019, float32, all frames of 16 clips or single pictures at once: the layers of a part
together, and what is between layers. With ``ssc`` also the correction of two steps, for every
frame. CPU seconds of one thread, or the clock on a GPU.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import nn

import zoo
from zoo.base import PoseModule
from zoo.correction import Correction, correct_terms
from zoo.methods.ssc import SSC
from zoo.testing.people import random_batch


def part_of(model: nn.Module, path: str) -> str:
    """The child of the model that a layer is in, and its list of stages if it is in one."""
    names = path.split(".")
    inner = model.get_submodule(".".join(names[:2]))
    return ".".join(names[:2]) if isinstance(inner, nn.ModuleList) else names[0]


def measure(model: PoseModule, samples: int, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds an image by part, of the fastest of several passes."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.thread_time() if device == "cpu" else time.perf_counter()

    spent: Counter[str] = Counter()
    begun: dict[str, float] = {}

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            begun[path] = clock()

        return hook

    def leave(path: str) -> Callable[..., None]:
        part = part_of(model, path)

        def hook(*_: Any) -> None:
            spent[part] += clock() - begun[path]

        return hook

    for path, layer in model.named_modules():
        if path and next(layer.children(), None) is None:
            layer.register_forward_pre_hook(enter(path))
            layer.register_forward_hook(leave(path))
    batch = random_batch(model.input_spec, model.skeleton, samples, device=device)
    images = samples * model.input_spec.frames
    best: dict[str, float] = {}
    with torch.inference_mode():
        model(batch)
        for _ in range(repeats):
            spent.clear()
            begin = clock()
            model(batch)
            whole = clock() - begin
            if not best or whole < best["forward pass"]:
                best = {**spent, "between layers": whole - sum(spent.values())}
                best["forward pass"] = whole
    if isinstance(model, SSC) and model.psi_c is not None:
        with torch.no_grad():
            terms = model.correction_terms(batch)
        setting = Correction(steps=2, eps_mm=0.0, tau_mm=math.inf, dead_zone=0.0)
        times = []
        for _ in range(repeats):
            begin = clock()
            correct_terms(model, terms, setting)
            times.append(clock() - begin)
        best["correction, two steps"] = min(times)
    return {name: 1000 * seconds / images for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["rpsm", "ssc"], help="shipped networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        model = zoo.load(name).to(options.device).eval()
        spec = model.input_spec
        print(f"{name}: {spec.image_size} px, clips of {spec.frames}; ms an image")
        for part, ms in measure(model, options.samples, options.repeats, options.device).items():
            print(f"  {part:<24}{ms:9.3f}")


if __name__ == "__main__":
    main()
