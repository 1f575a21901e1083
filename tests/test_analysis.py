"""``zoo analyse``: planted limbs, parts, codes and clips are found; files and errors."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import zoo
from datamodules.motion import MotionBank
from datamodules.synthetic import SyntheticDataModule
from zoo.analysis import codes, limbs, parts, run, strips
from zoo.analysis.models import Opened, predict_split
from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.checkpoint import save_weights
from zoo.errors import UsageError
from zoo.skeleton import H36M_17

ARGS: dict[str, Any] = {
    "split": "test", "samples": 24, "action": "", "batch_size": 10, "rule": "mean",
    "threshold": 0.5, "perplexity": 8.0, "seed": 0, "frames": 3, "fps": 0.0,
}  # fmt: skip


class Planted(PoseModule):
    """Predicts the truth, changed by ``change``; a window of T frames predicts one of them."""

    def __init__(
        self, change: Callable[[Tensor], Tensor] = lambda pose: pose, frames: int = 1,
        at: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.change, self.frames = change, frames
        self.at = frames // 2 if at is None else at

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec("keypoints", 64, self.frames, 10.0)

    @property
    def predicted_frames(self) -> tuple[int, ...]:
        return (self.at,)

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def forward(self, batch: PoseBatch) -> Prediction:
        assert batch["joints_3d"].shape[1] == self.frames
        return {"pred_3d": self.change(batch["joints_3d"][:, [self.at]])}

    def pose_codes(self, joints: Tensor) -> Tensor:
        """Two clusters, by the side on which the right wrist is."""
        side = (joints[:, H36M_17.index("r_wrist"), 0] > 0).float()
        return side[:, None] * 50 + joints.flatten(1) / 1000


@pytest.fixture(scope="module")
def bank() -> MotionBank:
    actions = ("Walking", "Sitting")
    return MotionBank.generated(
        0, splits=["test"], actions=actions, recordings={"test": 1}, seconds=4.0
    )


@pytest.fixture
def opened(bank: MotionBank) -> Callable[..., Opened]:
    def make(model: PoseModule, label: str = "model") -> Opened:
        data = SyntheticDataModule(test_samples=60, input_spec=model.input_spec)
        data._banks["test"] = bank  # a small one: what is analysed is planted
        return Opened(label, model.eval(), data)

    return make


def flags(out: Path, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**ARGS, "out": out, **changes})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return min(pixels.shape) > 200 and float(pixels.std()) > 5


# ---- limbs ---------------------------------------------------------------------------------------


def longer(child: str, factor: float) -> Callable[[Tensor], Tensor]:
    """Moves an end joint along its bone: only this limb changes its length."""
    at = H36M_17.index(child)
    parent = H36M_17.parents[at]

    def change(pose: Tensor) -> Tensor:
        pose = pose.clone()
        pose[..., at, :] = pose[..., parent, :] + factor * (pose[..., at, :] - pose[..., parent, :])
        return pose

    return change


def test_a_planted_limb_is_the_one_cross_of_the_matrix(
    opened: Callable[..., Opened], tmp_path: Path
) -> None:
    models = [
        opened(Planted(lambda pose: 1.7 * pose), "scaled"),
        opened(Planted(longer("l_wrist", 2.0)), "long arm"),
    ]
    paths = limbs.analyse(models, flags(tmp_path))
    assert [p.name for p in paths] == [
        "limb_ratios.png", "limb_ratios.csv", "limb_ratio_sums.csv",
    ]  # fmt: skip
    assert is_picture(paths[0])
    cells = rows(paths[1])
    assert len(cells) == 2 * 2 * 16 * 16
    for cell in cells:
        crossed = (cell["limb"] == "l_wrist") != (cell["over"] == "l_wrist")
        wanted = math.log(2) if crossed and cell["model"] == "long arm" else 0.0
        assert float(cell["error"]) == pytest.approx(wanted, abs=2e-5)
    sums = {(r["model"], r["reading"]): r for r in rows(paths[2])}
    planted = sums["long arm", "absolute"]
    assert float(planted["lower"]) == pytest.approx(0, abs=1e-3)
    assert float(planted["upper"]) == pytest.approx(2 * 9 * math.log(2), rel=1e-4)
    assert float(planted["full"]) == pytest.approx(2 * 15 * math.log(2), rel=1e-4)
    assert planted["poses"] == "24"


def test_one_action_alone(opened: Callable[..., Opened], tmp_path: Path) -> None:
    one = opened(Planted())
    found = predict_split(one, flags(tmp_path, samples=0, action="Sitting"))
    everything = predict_split(one, flags(tmp_path, samples=0))
    sitting = one.data.action_names.index("Sitting")
    assert 0 < len(found.pred) < len(everything.pred)
    assert found.ids["action"].unique().tolist() == [sitting]
    assert int((everything.ids["action"] == sitting).sum()) == len(found.pred)


# ---- parts ---------------------------------------------------------------------------------------


def test_planted_parts_are_right_or_wrong(opened: Callable[..., Opened], tmp_path: Path) -> None:
    models = [
        opened(Planted(), "truth"),
        opened(Planted(longer("l_wrist", 3.0)), "wrist"),  # mean end error is the whole length
    ]
    picture, table = parts.analyse(models, flags(tmp_path))
    assert is_picture(picture)
    truth, wrist, paper = rows(table)
    assert {float(truth[name]) for name in parts.PAPER} == {100.0}
    assert float(wrist["lower_arms"]) == 50.0
    assert float(wrist["all"]) == 90.0  # nine parts of ten
    assert float(paper["all"]) == 63.1
    assert "KTH" in paper["data"]
    strict = parts.analyse(
        [opened(Planted(longer("l_wrist", 1.6)), "wrist")],
        flags(tmp_path / "strict", rule="strict"),
    )
    assert float(rows(strict[1])[0]["lower_arms"]) == 50.0
    mean = parts.analyse(
        [opened(Planted(longer("l_wrist", 1.6)), "wrist")], flags(tmp_path / "mean")
    )
    assert float(rows(mean[1])[0]["lower_arms"]) == 100.0


# ---- codes ---------------------------------------------------------------------------------------


def test_two_planted_clusters_of_codes_stay_apart_in_the_plane(
    opened: Callable[..., Opened], tmp_path: Path
) -> None:
    picture, table = codes.analyse([opened(Planted())], flags(tmp_path, samples=60))
    again = codes.analyse([opened(Planted())], flags(tmp_path / "again", samples=60))
    assert table.read_bytes() == again[1].read_bytes()
    assert is_picture(picture)
    found = rows(table)
    assert len(found) == 60
    assert {r["action"] for r in found} == {"Walking", "Sitting"}
    plane = np.array([[float(r["x"]), float(r["y"])] for r in found])
    one = predict_split(opened(Planted()), flags(tmp_path, samples=60))
    side = (one.truth[:, H36M_17.index("r_wrist"), 0] > 0).numpy()
    away = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.fill_diagonal(away, np.inf)
    assert 5 < side.sum() < 55
    # Everyone's neighbour is of the own cluster.
    assert (side[away.argmin(1)] == side).all()


def test_drawn_poses_are_spread_out() -> None:
    plane = np.random.default_rng(0).normal(size=(500, 2))
    picked = codes._spread(plane, 20)
    assert len(set(picked)) == 20
    chosen = plane[picked]
    gaps = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1)[np.triu_indices(20, 1)]
    random = np.linalg.norm(plane[:20, None] - plane[None, :20], axis=-1)[np.triu_indices(20, 1)]
    assert gaps.min() > 3 * random.min()


# ---- strips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 4, 0])
def test_every_model_of_a_strip_predicts_the_same_frames(
    opened: Callable[..., Opened], tmp_path: Path, at: int
) -> None:
    """Single frames, centred windows and causal ones: the truth of frame t is the truth of t."""
    models = [opened(Planted(), "single"), opened(Planted(frames=5, at=at), "window")]
    paths = strips.analyse(models, flags(tmp_path, samples=2))
    assert [p.name for p in paths] == ["strip_000.png", "strip_001.png", "strips.csv"]
    assert is_picture(paths[0])
    table = rows(paths[-1])
    assert len(table) == 2 * 2 * 3
    assert {r["frame"] for r in table} == {"-1", "0", "1"}
    assert max(float(r["mpjpe_mm"]) for r in table) < 1e-3


def test_a_strip_measures_error_and_shaking(opened: Callable[..., Opened], tmp_path: Path) -> None:
    def moved(pose: Tensor) -> Tensor:
        return pose + torch.tensor([0.0, 30.0, 40.0])

    paths = strips.analyse([opened(Planted(moved))], flags(tmp_path, samples=1, frames=5))
    table = rows(paths[-1])
    assert [float(r["mpjpe_mm"]) for r in table] == pytest.approx([50.0] * 5, abs=1e-3)
    assert float(table[0]["acceleration_mm_per_frame2"]) == pytest.approx(0, abs=1e-3)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = zoo.create(
        "latent-ae-heatmap", image_size=32, crop_size=28, channels=(4, 4, 4), fc=(8, 8, 8),
        hidden=(24, 20), heatmap_cells=16,
    )  # fmt: skip
    return save_weights(model, tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def test_the_command_line_writes_what_it_prints(
    weights: Path, zoo_cli: Callable[..., Any], tmp_path: Path
) -> None:
    done = zoo_cli(
        "analyse", "tsne", f"mine={weights}", "--samples", "40", "--out", "seen", "--gpus", "0",
        "--data.test_samples", "80",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["seen/tsne.png", "seen/tsne.csv"]
    assert len(rows(tmp_path / "seen" / "tsne.csv")) == 40
    assert is_picture(tmp_path / "seen" / "tsne.png")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["limb-ratios", "{w}", "--data.nonsense", "1"], "nonsense"),
        (["limb-ratios", "{w}", "--nonsense", "1"], "--nonsense"),
        (["limb-ratios", "{w}", "{w}"], "two models are called"),
        (["limb-ratios", "nothing.ckpt"], "no file nothing.ckpt"),
        (["limb-ratio", "{w}"], "invalid choice"),
        (["strips", "{w}", "--frames", "4"], "odd"),
        (["pcp", "{w}", "--action", "Walkin"], "did you mean"),
        (["tsne", "{w}", "--samples", "-1"], "--samples"),
        (["pcp", "{w}", "--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    weights: Path, in_tmp: Path, words: list[str], match: str
) -> None:
    with pytest.raises(zoo.ZooError, match=match) as caught:
        run([w.format(w=weights) for w in words] + ["--gpus", "0"])
    assert "\n" not in str(caught.value)
    assert not [p for p in in_tmp.rglob("*") if p.is_file()]


def test_a_model_without_codes_has_no_latent_space(
    opened: Callable[..., Opened], tmp_path: Path
) -> None:
    one = opened(Planted())
    model = zoo.create("latent-direct", image_size=32, crop_size=28, channels=(4, 4, 4), fc=(8, 8))
    with pytest.raises(UsageError, match="no latent space"):
        codes.analyse([Opened("direct", model, one.data)], flags(tmp_path))
    with pytest.raises(UsageError, match="perplexity"):
        codes.embed(np.zeros((5, 3)), 5.0, 0)
