"""Two processes train and test as one does: every class of the registry, on CPUs with gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from datamodules.base import EpochSampler, RestOfEpoch
from tests.scale.processes import class_names

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, "-m", "tests.scale.processes", str(path)], cwd=ROOT, text=True,
        capture_output=True, timeout=580, check=False,
        env={**os.environ, "WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[tuple[int, int], Any]:
    return {
        (world, rank): torch.load(folder / f"world{world}-rank{rank}.pt", weights_only=True)
        for world, rank in ((1, 0), (2, 0), (2, 1))
    }


def close(a: Tensor, b: Tensor, scale: float) -> bool:
    return bool((a.double() - b.double()).abs().max() <= 1e-5 * scale)


@pytest.mark.parametrize("name", class_names())
def test_gradients_of_two_batches_are_those_of_one_twice_as_large(
    found: dict[tuple[int, int], Any], name: str
) -> None:
    """In every phase; batch norm is synchronised."""
    alone, first, second = (found[key][name]["gradients"] for key in ((1, 0), (2, 0), (2, 1)))
    assert alone.keys() == first.keys() == second.keys()
    for phase, gradients in alone.items():
        assert gradients, phase
        assert gradients.keys() == first[phase].keys()
        scale = max(float(g.abs().max()) for g in gradients.values())
        assert scale > 0, phase
        for key, value in gradients.items():
            assert close(value, first[phase][key], scale), (phase, key)
            assert torch.equal(first[phase][key], second[phase][key]), (phase, key)


@pytest.mark.parametrize("name", class_names())
def test_no_sample_is_drawn_twice_in_an_epoch(found: dict[tuple[int, int], Any], name: str) -> None:
    alone = found[1, 0][name]["drawn"]
    both = found[2, 0][name]["drawn"] + found[2, 1][name]["drawn"]
    assert len(set(both)) == len(both)
    assert len(set(alone)) == len(alone)
    assert {epoch for epoch, _ in both} == {epoch for epoch, _ in alone}
    # 19 samples in batches of 8, or of 4 and 4: the same 16 of the same order.
    assert sorted(both) == sorted(alone)


@pytest.mark.parametrize("name", class_names())
def test_staged_training_leaves_the_same_on_every_process(
    found: dict[tuple[int, int], Any], name: str
) -> None:
    first, second = found[2, 0][name]["state"], found[2, 1][name]["state"]
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    # What is fitted to poses before training is that of one process, too.
    alone, both = found[1, 0][name]["fitted"], found[2, 0][name]["fitted"]
    assert alone.keys() == both.keys()
    assert bool(alone["statistics_fitted"])
    for key, value in alone.items():
        assert torch.equal(value, both[key]), key


@pytest.mark.parametrize("name", class_names())
def test_test_metrics_are_those_of_one_process(
    found: dict[tuple[int, int], Any], name: str
) -> None:
    """Seven samples on two processes."""
    alone, first, second = (found[key][name]["metrics"] for key in ((1, 0), (2, 0), (2, 1)))
    assert first == second
    assert alone.keys() == first.keys()
    for key, value in alone.items():
        assert first[key] == pytest.approx(value, rel=1e-5, nan_ok=True), key


def test_only_the_first_process_writes_and_calls_wandb(folder: Path) -> None:
    assert (folder / "written.rank1").read_text() == ""
    run = folder / "cli"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "metrics.csv").is_file()
    assert len(list(run.glob("wandb/offline-run-*"))) == 1
    assert [p.name for p in folder.iterdir() if p.is_dir()] == ["cli"]


@given(
    size=st.integers(2, 60), world=st.integers(1, 4), epoch=st.integers(0, 3),
    seed=st.integers(0, 5), done=st.integers(0, 9), shuffle=st.booleans(),
)  # fmt: skip
def test_an_order_is_shared_without_overlap_and_can_be_resumed(
    size: int, world: int, epoch: int, seed: int, done: int, shuffle: bool
) -> None:
    if size < world:
        return
    items = []
    for rank in range(world):
        options: dict[str, Any] = {
            "num_replicas": world, "rank": rank, "seed": seed, "shuffle": shuffle
        }  # fmt: skip
        whole = EpochSampler(range(size), **options)  # type: ignore[arg-type]
        whole.set_epoch(epoch)
        mine = list(whole)
        assert len(mine) == size // world
        items += mine
        inner = EpochSampler(range(size), **options)  # type: ignore[arg-type]
        resumed = RestOfEpoch(inner, epoch, done)
        resumed.set_epoch(epoch)
        assert list(resumed) == mine[done:]
        resumed.set_epoch(epoch + 1)
        whole.set_epoch(epoch + 1)
        assert list(resumed) == list(whole)
    assert len(set(items)) == len(items)
    assert all(index // size == epoch for index in items)


@pytest.mark.parametrize("runner", ["torchrun"])
def test_two_nodes_on_one_machine(tmp_path: Path, runner: str) -> None:
    """The command line of ``docs/scaling.md``, both nodes on loopback."""
    from tests.scale.forked import fit
    from tests.scale.processes import _free_port

    words = fit("latent-ae-heatmap", "nodes", "--data.train_samples", "16")
    words += ["--data.batch_size", "4", "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    words += ["--trainer.strategy", "ddp", "--trainer.max_epochs", "1"]
    port = _free_port()
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node",
             "1", "--node_rank", str(node), "--master_addr", "127.0.0.1", "--master_port",
             str(port), "-m", "--", "zoo", *words],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"},
        )
        for node in range(2)
    ]  # fmt: skip
    outputs = [node.communicate(timeout=400)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    kept = torch.load(tmp_path / "nodes" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2  # 16 samples, 4 on each node
    assert sum("run folder: nodes" in text for text in outputs) == 1
