"""Flags that people use, each with one name of every class, through the command line."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.tuner.tuning import Tuner

from tests.scale.small_runs import class_names, fit_tiny, last, quicker, rows, words
from zoo.base import PoseModule
from zoo.cli import main

NAMES = class_names()
EVERYTHING = (
    "--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2",
    "--trainer.gradient_clip_val", "0.01", "--ema", "0.5", "--early_stopping", "9",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicker(monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    clip = PoseModule.configure_gradient_clipping

    def watched(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        clip(self, optimizer, *args, **kwargs)
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.float().norm() for g in grads]).norm()))

    monkeypatch.setattr(PoseModule, "configure_gradient_clipping", watched)
    run = fit_tiny(name, "all", *EVERYTHING, samples=24)  # three batches: steps of two and of one
    epochs = last(run)["epoch"] + 1
    assert last(run)["global_step"] == 2 * epochs
    assert len(norms) == 2 * epochs
    assert max(norms) <= 0.01 * 1.01
    assert all(math.isfinite(value) for value in rows(run, "train/loss"))
    kept = last(run)
    trained = kept["weights_in_training"]
    assert trained
    assert all(v.dtype == torch.float32 for v in trained.values())
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["ema"], config["early_stopping"]) == (0.5, 9)
    assert config["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_network_learns_the_same(name: str) -> None:
    """With the backend that runs the captured graphs as they are, so to the last digits."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = fit_tiny(name, "plain")
    compiled = fit_tiny(name, "compiled", "--compile=eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert rows(compiled, "train/loss") == pytest.approx(rows(plain, "train/loss"), rel=1e-3)
    assert last(compiled)["state_dict"].keys() == last(plain)["state_dict"].keys()


@pytest.mark.slow
def test_the_bare_flag_takes_the_usual_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("zoo.fit.compile_parts", lambda model, backend: asked.append(backend))
    fit_tiny("park", "compiled", "--compile", "--trainer.max_epochs", "1")
    assert asked == ["inductor"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_finder_hands_its_rate_on(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = functools.partialmethod(Tuner.lr_find, num_training=40)
    monkeypatch.setattr(Tuner, "lr_find", shorter)
    run = fit_tiny(name, "found", "--lr_find", "--trainer.max_epochs", "1", samples=80)
    rate = yaml.safe_load((run / "config.yaml").read_text())["model"]["lr"]
    assert f"--lr_find: --model.lr {rate:.3g}" in capsys.readouterr().out
    assert last(run)["hyper_parameters"]["lr"] == rate
    assert not list(run.glob(".lr_find*"))


@pytest.mark.parametrize("name", ["park"])
def test_early_stopping_waits_for_the_last_phase(name: str) -> None:
    run = fit_tiny(name, "flat", "--early_stopping", "2", "--model.lr", "0", "--model.epochs", "9")
    assert last(run)["epoch"] == 2  # the first one counts as better than nothing


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--ema=1.5", "decay"), ("--compile=nonsense", "backend"), ("--gpus=64", "this machine has")],
)
def test_wrong_values_are_one_line(
    flag: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words("park", "wrong"), flag]) == 2
    error = capsys.readouterr().err
    assert error.startswith("zoo: error:")
    assert said in error
    assert error.count("\n") == 1
    assert not Path("wrong").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flags", [EVERYTHING, ("--compile",)], ids=["together", "compiled"])
def test_on_a_gpu(name: str, flags: tuple[str, ...]) -> None:
    run = fit_tiny(name, "gpu", *flags, "--gpus", "1")
    assert all(math.isfinite(value) for value in rows(run, "train/loss"))
