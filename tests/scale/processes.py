"""Trains every class of the registry with one and with two processes and writes what came out.

``python -m tests.scale.processes FOLDER`` imports once and forks: two processes that find each
other as under ``torchrun``, then one alone. The test module compares the files.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from callbacks.phases import TrainingPhases
from datamodules.synthetic import SyntheticDataModule
from zoo.base import Phase, PoseModule
from zoo.registry import get_method, list_models, resolve_class
from zoo.sync_norm import SyncNorm

BATCH = 8  # samples a step, over all processes


def class_names() -> list[str]:
    """Of every class of this package the name with the most training stages."""
    found: dict[str, tuple[int, str]] = {}
    for name in list_models():
        record = get_method(name)
        if record.origin == "zoo" and not record.args.get("backbone"):  # 25 million parameters
            stages = sum(phase.epochs > 0 for phase in make(name).phases())
            best = found.get(record.class_path, (0, ""))
            found[record.class_path] = max(best, (stages, name))
    return [name for _, name in found.values()]


def arguments(name: str) -> dict[str, Any]:
    """Tiny sizes, and nothing random in a step: what each process draws is its own.

    Batch norm of SSC's projector sees the nearly constant poses of an untrained network, which
    magnifies rounding a thousandfold; synchronised batch norm is that of Park here.
    """
    record = get_method(name)
    args = {**resolve_class(record).tiny().hparams, **record.args}
    still = {
        "crop_size": args.get("image_size"), "noise": [0.0], "dropout": 0.0, "joint_dropout": 0.0,
        "batch_norm": False,
        "scale": [1.0, 1.0], "pretrain_scale": [1.0, 1.0], "pretrain_rotation": 0.0,
    }  # fmt: skip
    for key, value in still.items():
        if key in args:
            args[key] = value
    return args


def make(name: str) -> PoseModule:
    torch.manual_seed(0)
    model = resolve_class(get_method(name))(**arguments(name))
    model.zoo_name = name
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def data(model: PoseModule, world: int, **more: Any) -> SyntheticDataModule:
    settings: dict[str, Any] = {
        "train_samples": BATCH, "val_samples": 6, "test_samples": 7,
        "bodies_per_subject": 1, "batch_size": BATCH // world,
    }  # fmt: skip
    return SyntheticDataModule(**{**settings, **more}, input_spec=model.input_spec)


def trainer(folder: Path, world: int, *callbacks: pl.Callback, **more: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "devices": world, "strategy": "ddp" if world > 1 else "auto",
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": -1,
        "default_root_dir": folder, "plugins": [SyncNorm()] if world > 1 else None,
        "inference_mode": False,
    }  # fmt: skip
    return pl.Trainer(callbacks=[TrainingPhases(), *callbacks], **{**settings, **more})


class Gradients(pl.Callback):
    """The gradients of the step, after they were averaged over the processes."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                self.found[name] = parameter.grad.clone()


class Drawn(pl.Callback):
    """A number for every training sample, by epoch, and the buffers before the first."""

    def __init__(self) -> None:
        self.found: list[tuple[int, float]] = []
        self.fitted: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.fitted = {k: v.clone() for k, v in module.named_buffers()}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        values = batch["root_3d"].double().flatten(1).sum(1) * 1e3
        self.found += [(trainer.current_epoch, float(v)) for v in values]


def gradients(folder: Path, name: str, world: int) -> dict[str, dict[str, Tensor]]:
    """Of the first step of every phase, each from the same weights."""
    result = {}
    phases = [phase for phase in make(name).phases() if phase.epochs > 0]
    for phase in phases:
        model, seen = make(name), Gradients()
        alone = (Phase(phase.name, 1, phase.train),)
        model.phases = lambda alone=alone: alone  # type: ignore[method-assign]
        run = trainer(folder, world, seen, max_steps=1, limit_val_batches=0)
        run.fit(model, datamodule=data(model, world))
        result[phase.name] = seen.found
    return result


def job(folder: Path, world: int, rank: int) -> None:
    """Everything one process does."""
    from tests.scale.forked import _quicker

    _quicker()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name in class_names():
        one: dict[str, Any] = {"gradients": gradients(folder, name, world)}
        model, drawn = make(name), Drawn()
        stages = data(model, world, train_samples=2 * BATCH + 3)
        run = trainer(folder, world, drawn)
        run.fit(model, datamodule=stages)
        one["drawn"] = drawn.found
        one["fitted"] = drawn.fitted
        path = folder / f"{name}.pt"
        if world > 1:
            one["state"] = {k: v.clone() for k, v in model.state_dict().items()}
            if rank == 0:
                torch.save(one["state"], path)
        else:  # the two are there first
            model.load_state_dict(torch.load(path, weights_only=True))
        (one["metrics"],) = trainer(folder, world).test(
            model, datamodule=data(model, world), verbose=False
        )
        found[name] = one
        print(world, rank, name, flush=True)
    torch.save(found, folder / f"world{world}-rank{rank}.pt")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(world: int, work: Callable[[int], Any]) -> list[int]:
    """Forks processes that find each other as those of ``torchrun`` do; their statuses."""
    port, pids = _free_port(), []
    for rank in range(world):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        status = 1
        try:
            if world > 1:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                    LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0", MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test", GLOO_SOCKET_IFNAME="lo",
                )  # fmt: skip
            status = int(work(rank) or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def command_line(folder: Path, rank: int) -> int:
    """``zoo fit`` with W&B on two processes; the second must neither write nor call W&B."""
    import wandb

    from tests.scale.forked import _quicker, fit
    from zoo.cli import main

    os.chdir(folder)
    _quicker()
    written: list[str] = []
    if rank > 0:

        def look(event: str, args: Any) -> None:
            writing = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
            if writing or event in ("os.mkdir", "os.rename", "os.remove"):
                path = os.path.abspath(os.fsdecode(args[0]))
                if path.startswith(str(folder)) and not path.endswith(".rank1"):
                    written.append(f"{event} {path}")

        def never(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("a second process called wandb.init")

        wandb.init = never
        sys.addaudithook(look)
    words = fit("latent-ae-heatmap", "cli", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    words += ["--data.train_samples", "33", "--data.batch_size", "4", "--logger", "wandb"]
    words += ["--trainer.sync_batchnorm", "true"]
    status = main(words)
    (folder / f"written.rank{rank}").write_text("\n".join(written))
    return status


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    import wandb  # noqa: F401

    import zoo.fit  # noqa: F401

    for name in class_names():
        make(name)  # imports
    statuses = spawn(2, lambda rank: job(target, 2, rank))
    statuses += spawn(1, lambda rank: job(target, 1, rank))
    statuses += spawn(2, lambda rank: command_line(target, rank))
    print(statuses)
    sys.exit(any(statuses))
