"""A plain heatmap-and-location-map network: the yardstick for the methods on synthetic people.

No paper's mechanism: a residual trunk, one heatmap a joint read by soft-argmax for 2D, and location
maps read under the same heatmap for 3D (mm over a fixed scale). About 1.3 M parameters at 96 px.

    python benchmarks/plain_network.py --mocap cmu17.npz --images 560000 --out runs/plain
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from datamodules.synthetic import SyntheticDataModule
from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction

MM = 1000.0


def block(channels: int) -> nn.Module:
    """Pre-activation residual branch."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
    )


class PlainNetwork(PoseModule):
    """Heatmaps for 2D, location maps for 3D; nothing else."""

    def __init__(
        self, image_size: int = 96, width: int = 88, blocks: int = 6, epochs: int = 28,
        lr: float = 2e-3, steps_per_epoch: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        joints = len(self.skeleton)
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(block(width) for _ in range(blocks))
        self.mix = nn.ModuleList(
            nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4 * joints, 1))

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec("image", self.hparams["image_size"])

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("train", self.hparams["epochs"]),)

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) -> 2D px (N, J, 2) and 3D mm (N, J, 3)."""
        x = self.stem(image - 0.5)
        for residual, mix in zip(self.blocks, self.mix, strict=True):
            x = x + residual(x)
            x = x + mix(x)
        maps = self.head(x).float()
        joints, size = len(self.skeleton), maps.shape[-1]
        heat = maps[:, :joints].flatten(2).softmax(-1)  # (N, J, HW)
        places = maps[:, joints:].reshape(len(maps), joints, 3, -1)
        stride = self.hparams["image_size"] / size
        cells = (torch.arange(size, device=maps.device) + 0.5) * stride - 0.5
        heat2 = heat.reshape(*heat.shape[:2], size, size)
        points = torch.stack([heat2.sum(2) @ cells, heat2.sum(3) @ cells], -1)
        pose = (heat[:, :, None] * places).sum(-1) * MM
        return points, pose - pose[:, :1]

    def forward(self, batch: PoseBatch) -> Prediction:
        shape = batch["image"].shape[:2]
        points, pose = self.maps(batch["image"].flatten(0, 1))
        return {"pred_3d": pose.unflatten(0, shape), "pred_2d": points.unflatten(0, shape)}

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        prediction = self(batch)
        error_2d = (prediction["pred_2d"] - batch["joints_2d"]).abs().sum(-1)
        error_3d = (prediction["pred_3d"] - batch["joints_3d"]).abs().sum(-1)
        loss_2d = (error_2d * batch["valid_2d"]).mean() / self.hparams["image_size"]
        loss_3d = (error_3d * batch["valid_3d"]).mean() / MM
        return {"loss": 4 * loss_2d + 4 * loss_3d, "loss_2d": loss_2d, "loss_3d": loss_3d}

    def configure_optimizers(self) -> Any:
        steps = self.hparams["steps_per_epoch"] * self.hparams["epochs"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams["lr"], total_steps=steps + 1, pct_start=0.05
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mocap", default=None)
    parser.add_argument("--images", type=int, default=560_000)
    parser.add_argument("--samples", type=int, default=20_000, help="images an epoch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/plain"))
    args = parser.parse_args()
    pl.seed_everything(0)
    epochs = max(1, args.images // args.samples)
    model = PlainNetwork(epochs=epochs, steps_per_epoch=args.samples // args.batch + 1)
    data = SyntheticDataModule(
        mocap=args.mocap, train_samples=args.samples, batch_size=args.batch,
        num_workers=args.workers,
    )  # fmt: skip
    data.input_spec = model.input_spec
    cuda = torch.cuda.is_available()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="gpu" if cuda else "cpu", devices=1,
        precision="bf16-mixed", logger=CSVLogger(str(args.out), name=None, version=""),
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=max(1, epochs // 10),
    )  # fmt: skip
    started = time.time()
    trainer.fit(model, datamodule=data)
    metrics = trainer.test(model, datamodule=data, verbose=False)[0]
    result = {
        "images": epochs * args.samples,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": (time.time() - started) / 60,
        "test": metrics,
    }
    (args.out / "plain_network.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
