"""Images per second of the renderer, and of an obvious version of it in the same run.

    python benchmarks/render.py                  # one CPU thread
    python benchmarks/render.py --device cuda

The obvious version takes one image and one cone after the other and computes every pixel.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch

from datamodules.figure import build_figure, outfit_from_uniforms
from datamodules.rays import Forms, depth_buffer, quadratic_forms
from datamodules.render import Scene, render
from datamodules.synthetic import SyntheticDataModule, render_batch
from zoo.base import InputSpec


def seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Best time of a call: of this process' CPU, or of the clock on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        begin = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begin)
    return min(times[1:])


def obvious_depth(forms: Forms, intrinsics: torch.Tensor, size: int) -> torch.Tensor:
    """(N, H, H) depths, float64, one image and one cone at a time."""
    v, u = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1).to(intrinsics)
    images = []
    for n in range(len(intrinsics)):
        rays = pixels @ torch.linalg.inv(intrinsics[n]).T
        best = torch.full((size, size), math.inf, dtype=rays.dtype, device=rays.device)
        for p in range(forms.size.shape[1]):
            dd, side, ball_a, ball_b = (
                ((rays @ forms.quads[n, p, i]) * rays).sum(-1) for i in range(4)
            )
            da, dg = (rays @ forms.lines[n, p, i] for i in range(2))
            c, shift = forms.size[n, p], forms.shift[n, p]
            for square, near in ((ball_a, da), (ball_b, da + dg)):
                t = (near - square.clamp_min(0).sqrt()) / dd
                best = torch.where((square > 0) & (t < best), t, best)
            t = (da + shift * dg / c - side.clamp_min(0).sqrt()) / (dd - dg * dg / c)
            place = t * dg + shift
            best = torch.where((side > 0) & (place > 0) & (place < c) & (t < best), t, best)
        images.append(best)
    return torch.stack(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    data = SyntheticDataModule(train_samples=args.batch)
    print(f"{'px':>4} {'render':>9} {'whole batch':>12} {'depth':>9} {'obvious depth':>14} ratio")
    for size in args.sizes:
        data.input_spec = spec = InputSpec(image_size=size)
        samples = data.train_set.__getitems__(range(args.batch))
        samples = {key: value.to(device) for key, value in samples.items()}
        batch = render_batch(samples, spec)
        scene = Scene(
            samples["joints"][:, 0], batch["intrinsics"][:, 0], samples["girth"],
            samples["outfit"], samples["scene"], -torch.ones(args.batch, 2, 4, device=device),
        )  # fmt: skip
        hair = outfit_from_uniforms(scene.outfit).hair_length.double()
        cones = build_figure(scene.joints.double(), scene.girth, hair)
        forms, intrinsics = quadratic_forms(cones), scene.intrinsics.double()
        dense = device.type != "cpu"

        def whole(samples: dict[str, torch.Tensor] = samples) -> object:
            return data.on_after_batch_transfer(samples, 0)

        few = slice(0, 4)
        cut = Forms(*(value[few] for value in forms))
        slow = obvious_depth(cut, intrinsics[few], size)
        fast = depth_buffer(cones, forms, intrinsics, size, dense)
        seen = fast.hit.view(-1, size, size)[few] & torch.isfinite(slow)
        error = (fast.depth.view(-1, size, size)[few] - slow)[seen].abs().median()
        assert error < 0.1, f"the two disagree by {error} mm"
        times = [
            seconds(lambda: render(scene, size, buffers=False), device, args.repeats),  # noqa: B023
            seconds(whole, device, args.repeats),
            seconds(
                lambda: depth_buffer(cones, forms, intrinsics, size, dense),  # noqa: B023
                device, args.repeats,
            ),
            seconds(lambda: obvious_depth(cut, intrinsics[few], size), device, 3)  # noqa: B023
            * args.batch / 4,
        ]  # fmt: skip
        rates = [args.batch / t for t in times]
        print(
            f"{size:4d} {rates[0]:7.0f}/s {rates[1]:10.0f}/s {rates[2]:7.0f}/s "
            f"{rates[3]:12.0f}/s {rates[2] / rates[3]:5.1f}"
        )


if __name__ == "__main__":
    main()
