from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callback_toy import ToyLifter, loaders, trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from callbacks.phases import TrainingPhases, freeze_parameters, set_modes
from zoo.base import Phase
from zoo.errors import CheckpointError, UsageError


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Spy(pl.Callback):
    """Keeps the weights at the start and end of each epoch and after each validation."""

    def __init__(self) -> None:
        self.start: list[dict[str, torch.Tensor]] = []
        self.end: list[dict[str, torch.Tensor]] = []
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == 0:
            self.start.append(weights(module))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.end.append(weights(module))
        self.values.append(float(trainer.callback_metrics["val/mpjpe_mm"]))


def fit(
    root: Any, model: ToyLifter, *callbacks: pl.Callback, period: int = 10**9, **options: Any
) -> pl.Trainer:
    run = trainer(root, TrainingPhases(), *callbacks, **options)
    run.fit(model, *loaders(period=period))
    return run


def test_phases_freeze_and_set_rates(tmp_path: Any) -> None:
    model, spy = ToyLifter(), Spy()
    run = fit(tmp_path, model, spy)
    assert run.current_epoch == 7  # max_epochs=-1 stops with the phases
    by_epoch = [next(s for s in model.seen if s["epoch"] == e) for e in range(7)]
    assert [s["phase"] for s in by_epoch] == ["trunk"] * 2 + ["head"] * 3 + ["all"] * 2
    trunk = {"trunk.0.weight", "trunk.0.bias", "trunk.1.weight", "trunk.1.bias"}
    head = {"head.weight", "head.bias"}
    assert by_epoch[0]["train"] == trunk
    assert by_epoch[2]["train"] == head
    assert by_epoch[6]["train"] == trunk | head  # what the method froze stays frozen
    # Each phase restarts the schedule, from its own rate.
    rates = [0.01, 0.009, 0.02, 0.018, 0.0162, 0.001, 0.0009]
    assert [s["lr"] for s in by_epoch] == pytest.approx(rates, rel=1e-9)
    for s in model.seen:  # root, batch norm of the trunk, head
        assert s["modes"] == {
            "trunk": (True, True, False), "head": (True, False, True), "all": (True, True, True),
        }[s["phase"]]  # fmt: skip
    # Frozen parts, batch norm's running statistics among them, do not move; the others do.
    for epoch, (start, end) in enumerate(zip(spy.start, spy.end, strict=True)):
        moved = {k.split(".")[0] for k in start if not torch.equal(start[k], end[k])}
        want = [{"trunk"}] * 2 + [{"head"}] * 3 + [{"trunk", "head"}] * 2
        assert moved == want[epoch]


def test_the_best_weights_feed_the_next_phase(tmp_path: Any) -> None:
    # A rate so high that a later epoch is worse than an earlier one.
    phases = (
        Phase("first", 3, monitor="val/mpjpe_mm", lr=0.5),
        Phase("second", 1, train=("head",)),
    )
    torch.manual_seed(0)
    spy = Spy()
    fit(tmp_path, ToyLifter(phases), spy)
    best = min(range(3), key=lambda e: spy.values[e])
    assert best < 2, "the toy no longer tells best from last"
    assert same(spy.start[3], spy.end[best])


def test_without_monitor_the_last_weights_feed_the_next_phase(tmp_path: Any) -> None:
    spy = Spy()
    fit(tmp_path, ToyLifter((Phase("first", 2), Phase("second", 1, ("head",)))), spy)
    assert same(spy.start[2], spy.end[1])


@pytest.mark.parametrize("kept", ["epoch", "step"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_resume_is_bit_identical(tmp_path: Any, stop: int, kept: str) -> None:
    """From checkpoints at the ends of epochs, and amid them, in every phase and at the borders.

    Lightning begins an interrupted epoch's data anew, so that all batches are the same here.
    """
    torch.manual_seed(3)
    model = ToyLifter()
    begin = weights(model)
    steps = 3
    files = ModelCheckpoint(
        tmp_path, "{epoch}-{step}", save_top_k=-1,
        **({"every_n_epochs": 1} if kept == "epoch" else {"every_n_train_steps": 1}),
    )  # fmt: skip
    whole = fit(tmp_path, model, files, enable_checkpointing=True, period=8)
    step = stop * steps if kept == "epoch" else stop * steps - 1
    (path,) = tmp_path.glob(f"*-step={step}.ckpt")

    resumed = ToyLifter()
    other = ToyLifter()
    resumed.load_state_dict(begin)
    run = trainer(tmp_path, TrainingPhases())
    run.fit(resumed, *loaders(period=8), ckpt_path=path, weights_only=True)
    assert run.global_step == whole.global_step == 21
    assert same(weights(resumed), weights(model))
    assert not same(weights(other), weights(model))
    old = whole.optimizers[0].state_dict()["state"]
    new = run.optimizers[0].state_dict()["state"]
    for key, state in old.items():
        assert torch.equal(state["exp_avg"], new[key]["exp_avg"])
    first = resumed.seen[0]
    want = next(s for s in model.seen[step:])
    assert first == want


def test_resume_keeps_the_best_of_the_phase(tmp_path: Any) -> None:
    phases = (Phase("first", 3, monitor="val/mpjpe_mm", lr=0.5), Phase("second", 2, ("head",)))
    torch.manual_seed(0)
    model = ToyLifter(phases)
    files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    spy = Spy()
    fit(tmp_path, model, files, spy, enable_checkpointing=True)
    best = min(range(3), key=lambda e: spy.values[e])
    for epoch in range(best, 3):  # the best epoch lies before the checkpoint
        resumed = ToyLifter(phases)
        run = trainer(tmp_path, TrainingPhases())
        run.fit(resumed, *loaders(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        assert same(weights(resumed), weights(model))


def test_other_phases_than_the_checkpoints_are_refused(tmp_path: Any) -> None:
    files = ModelCheckpoint(tmp_path, "last")
    fit(tmp_path, ToyLifter(), files, enable_checkpointing=True)
    with pytest.raises(CheckpointError, match=r"trunk, head, all.*now has other"):
        trainer(tmp_path, TrainingPhases()).fit(
            ToyLifter((Phase("other", 9),)), *loaders(), ckpt_path=tmp_path / "last.ckpt",
            weights_only=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase("a", 1, ("hed",)),), "did you mean 'head'|did you mean head"),
        ((Phase("a", 1, ()),), "trains nothing"),
        ((Phase("a", 0),), "no training phase"),
        ((Phase("a", 1), Phase("a", 1)), "same name"),
        ((Phase("a", 1, monitor="val/mpjpe"), Phase("b", 1)), "did you mean val/mpjpe_mm"),
    ],
)
def test_wrong_phases_are_named(tmp_path: Any, phases: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(tmp_path, ToyLifter(phases))


def test_a_phase_of_no_epochs_is_left_out(tmp_path: Any) -> None:
    model = ToyLifter((Phase("a", 0), Phase("b", 1), Phase("c", 1)))
    fit(tmp_path, model)
    assert [s["phase"] for s in model.seen] == ["b"] * 3 + ["c"] * 3


def test_one_phase_is_plain_training(tmp_path: Any) -> None:
    torch.manual_seed(1)
    plain = ToyLifter((Phase("all", 2),))
    staged = copy.deepcopy(plain)
    trainer(tmp_path, max_epochs=2).fit(plain, *loaders())
    fit(tmp_path, staged)
    assert same(weights(plain), weights(staged))
    assert staged.phase is not None
    assert staged.phase.name == "all"


def test_the_module_is_free_afterwards(tmp_path: Any) -> None:
    model = ToyLifter((Phase("head", 1, ("head",)),))
    fit(tmp_path, model)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"constant"}
    # A model in eval mode, as loaded, trains in train mode.
    again = model.eval()
    again._phases = (Phase("all", 1),)
    again.seen.clear()
    fit(tmp_path, again)
    assert again.seen[0]["modes"] == (True, True, True)


def test_phase_is_logged_and_the_rate_monitor_works(tmp_path: Any) -> None:
    log = CSVLogger(tmp_path, name=None, version="")
    fit(tmp_path, ToyLifter(), LearningRateMonitor(), logger=log, log_every_n_steps=1)
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    column = text[0].split(",").index("phase")
    values = [row.split(",")[column] for row in text[1:]]
    assert [float(v) for v in values if v] == [0, 0, 1, 1, 1, 2, 2]


def test_rates_keep_their_ratio_between_groups(tmp_path: Any) -> None:
    class TwoRates(ToyLifter):
        def configure_optimizers(self) -> Any:
            groups = [
                {"params": self.head.parameters(), "lr": 0.01},
                {"params": self.trunk.parameters(), "lr": 0.001},
            ]
            optimizer = torch.optim.SGD(groups)
            warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
            then = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
            both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, then], [2])
            return {"optimizer": optimizer, "lr_scheduler": both}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            rates.append([g["lr"] for g in self.trainer.optimizers[0].param_groups])
            return super().training_step(batch, batch_idx)

    rates: list[list[float]] = []
    fit(tmp_path, TwoRates((Phase("a", 4, lr=0.1),)))
    assert rates[::3] == [
        pytest.approx(r) for r in ([0.05, 0.005], [0.075, 0.0075], [0.1, 0.01], [0.1, 0.01])
    ]


def test_modes_of_parts() -> None:
    model = ToyLifter()
    set_modes(model, ("trunk.1",))
    assert model.training
    assert model.trunk.training
    assert model.trunk[1].training
    assert not model.trunk[0].training
    assert model.trunk[2].training  # dropout without state follows its surroundings
    assert model.dropout.training
    assert not model.head.training
    freeze_parameters(model, ("trunk.1", "head.bias"))
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    assert free == {"trunk.1.weight", "trunk.1.bias", "head.bias"}


def test_a_test_with_the_callback_changes_nothing(tmp_path: Any) -> None:
    model = ToyLifter()
    before = weights(model)
    run = trainer(tmp_path, TrainingPhases())
    run.validate(model, loaders()[1], verbose=False)
    assert same(before, weights(model))
    assert model.phase is None


@pytest.mark.slow
def test_two_processes_stay_in_step(tmp_path: Any) -> None:
    """Parameters that a later phase sets free are synchronised by DDP, too."""
    model = ToyLifter()
    run = trainer(
        tmp_path, TrainingPhases(), SaveEachRank(tmp_path), strategy="ddp_fork", devices=2
    )
    torch.manual_seed(0)
    begin = weights(model)
    run.fit(model, *loaders())
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
    # Running statistics are each process's own until the next forward pass.
    for name, _ in model.named_parameters():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        assert name == "constant" or not torch.equal(ranks[0][name], begin[name])


class SaveEachRank(pl.Callback):
    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, module: Any) -> None:
        torch.save(module.state_dict(), self.folder / f"rank{trainer.global_rank}.pt")
