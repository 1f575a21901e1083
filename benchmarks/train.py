"""Images a second in training, the share of time that goes into data, memory, largest batch.

    python benchmarks/train.py                              # one name of each class, small, CPU
    python benchmarks/train.py --recipe paper --device cuda --names park rpsm
    python benchmarks/train.py --out docs/results/train.md       # as a page

The last training stage of the recipe is measured, by Lightning's own loop, a process for each
name. On a CPU seconds are those of the process, so that other work on the machine does not count;
"waiting" is what the loader takes, "rendering" what the data module does on the device that trains.
The largest batch is found by doubling on a GPU; on a CPU it follows from the memory of two batches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler

from callbacks.phases import TrainingPhases
from zoo.base import Phase
from zoo.registry import create, dataset_class, get_method, list_models
from zoo.request import recipe_settings

LOADER = "train_dataloader_next"
STEP = "run_training_batch"


class Clock(Profiler):
    """Adds up the seconds of the steps after the first ones."""

    def __init__(self, device: str, skip: int) -> None:
        super().__init__()
        self.device, self.skip = device, skip
        self.begun: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def start(self, action_name: str) -> None:
        if action_name.endswith((LOADER, STEP, "on_after_batch_transfer")):
            self.begun[action_name] = self.now()

    def stop(self, action_name: str) -> None:
        if action_name in self.begun:
            kind = action_name.split(".")[-1]
            self.seconds.setdefault(kind, []).append(self.now() - self.begun.pop(action_name))

    def total(self, kind: str) -> float:
        return sum(self.seconds.get(kind, [0.0])[self.skip :])


def memory(device: str) -> float:
    """Peak MiB so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(name: str, recipe: str, device: str, batch: int, steps: int, skip: int) -> dict[str, Any]:
    """Trains so many steps of the last stage; what it took."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    record = get_method(name)
    settings = recipe_settings(record, recipe)
    args = {k: v for k, v in settings.get("model", {}).items() if not k.endswith("pretrained")}
    model = create(name, **args)
    data_args = dict(settings.get("data", {}))
    size = batch or data_args.get("batch_size", 64)
    data_args |= {"batch_size": size, "train_samples": size * steps, "val_samples": 4}
    data = dataset_class(record.data)(**data_args)
    data.input_spec = model.input_spec
    # Statistics from fewer poses: they are fitted once and not what is measured.
    poses = data.training_poses
    data.training_poses = lambda count=20000: poses(500)  # type: ignore[method-assign]
    last = [phase for phase in model.phases() if phase.epochs > 0][-1]
    model.phases = lambda: (Phase(last.name, 1, last.train),)  # type: ignore[method-assign]
    clock = Clock(device, skip)
    transfer = data.on_after_batch_transfer

    def timed(content: Any, index: int) -> Any:
        with clock.profile("data.on_after_batch_transfer"):
            return transfer(content, index)

    data.on_after_batch_transfer = timed  # type: ignore[method-assign]
    precision = settings.get("trainer", {}).get("precision", "32-true")
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, callbacks=[TrainingPhases()], profiler=clock, precision=precision,
    )  # fmt: skip
    before = memory(device)
    trainer.fit(model, datamodule=data)
    wait, make = clock.total(LOADER), clock.total("on_after_batch_transfer")
    work = clock.total(STEP)
    everything = wait + make + work
    images = size * (steps - skip) * model.input_spec.frames
    return {
        "name": name, "batch": size, "frames": model.input_spec.frames,
        "pixels": model.input_spec.image_size, "kind": model.input_spec.kind,
        "per_second": images / everything, "waiting": wait / everything,
        "rendering": make / everything, "before": before, "memory": memory(device),
    }  # fmt: skip


def apart(*args: Any) -> dict[str, Any] | None:
    """``train`` in a process of its own; None where memory runs out."""
    context = multiprocessing.get_context("spawn" if args[2] == "cuda" else "fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_put, args=(queue, args))
    process.start()
    result = json.loads(queue.get())
    process.join()
    return result


def _put(queue: Any, args: tuple[Any, ...]) -> None:
    try:
        queue.put(json.dumps(train(*args)))
    except (torch.OutOfMemoryError, MemoryError):
        queue.put("null")


def largest_batch(name: str, recipe: str, device: str, first: dict[str, Any]) -> int:
    """Samples a batch that fit into the memory of the device."""
    if device == "cuda":
        batch = first["batch"]
        while apart(name, recipe, device, 2 * batch, 2, 1) is not None:
            batch *= 2
        return batch
    half = apart(name, recipe, device, max(first["batch"] // 2, 2), 2, 0)
    assert half is not None
    each = (first["memory"] - half["memory"]) / (first["batch"] - half["batch"])
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    if (first["memory"] - half["memory"]) < 0.02 * first["memory"]:
        return 0  # the batch is lost beside what everything else takes; give a larger --batch
    return int((total - first["memory"]) / each) + int(first["batch"])


def machine(device: str) -> str:
    """What it was measured on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    model = platform.processor() or "CPU"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        model = names[0] if names else model
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"one thread of {model} ({os.cpu_count()} cores, {gib:.0f} GiB), "
        f"PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--names", nargs="+", default=[])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--skip", type=int, default=1, help="first steps that do not count")
    parser.add_argument("--batch", type=int, default=0, help="default: the recipe's")
    parser.add_argument("--out", default="", help="write a page")
    args = parser.parse_args()
    names = args.names
    if not names:
        first: dict[str, str] = {}
        for name in list_models():
            if get_method(name).origin == "zoo":
                first.setdefault(get_method(name).class_path, name)
        names = list(first.values())
    lines = [
        f"# Training speed, `{args.recipe}` recipes", "",
        f"Measured {date.today().isoformat()} on {machine(args.device)}, by "
        f"`python benchmarks/train.py --recipe {args.recipe} --device {args.device} "
        f"--steps {args.steps}`. On a CPU a second is one of the process, not of the clock. "
        "The last column is the largest batch that fits.", "",
        "| name | input | batch | images/s | waiting for data | rendering | memory MiB | most |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    for name in names:
        common = (name, args.recipe, args.device)
        found = apart(*common, args.batch, args.steps, args.skip)
        assert found is not None, f"{name}: the recipe's batch does not fit"
        most = largest_batch(*common, found)
        clip = f" x {found['frames']} frames" if found["frames"] > 1 else ""
        about = "about " if args.device == "cpu" else ""
        largest = f"{about}{most}" if most else "-"
        lines.append(
            f"| `{name}` | {found['kind']} {found['pixels']} px{clip} | {found['batch']} | "
            f"{found['per_second']:.1f} | {found['waiting']:.1%} | {found['rendering']:.1%} | "
            f"{found['memory']:.0f} | {largest} |"
        )
        print(lines[-1], flush=True)
    if args.out:
        Path(args.out).write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
