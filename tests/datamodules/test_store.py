"""Pictures that are shown again: the same people and crops, other colours, whatever was kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.people import Samples
from datamodules.synthetic import SyntheticDataModule, render_batch
from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.errors import OutputError, UsageError


def epochs(count: int, fresh: int, skip: int = 0) -> list[dict[str, Tensor]]:
    """Whole epochs of 24 samples, in the order of their ids."""
    module = SyntheticDataModule(
        train_samples=24, batch_size=8, fresh_epochs=fresh, input_spec=InputSpec("image", 32)
    )
    module.setup("fit")
    loader = module.train_dataloader()
    found = []
    for epoch in range(skip, count):
        loader.sampler.set_epoch(epoch)
        batches = [module.on_after_batch_transfer(batch, 0) for batch in loader]
        whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        order = whole["joints_3d"].flatten(1).sum(1).argsort()
        found.append({key: value[order] for key, value in whole.items()})
    return found


def test_pictures_come_back_in_other_colours() -> None:
    first, second, third = epochs(3, fresh=2)
    for key in ("joints_3d", "joints_2d", "intrinsics", "frame", "subject"):
        assert torch.equal(first[key], third[key])
        assert not torch.equal(first["joints_3d"], second["joints_3d"])
    assert not torch.equal(first["image"], third["image"])
    # The pictures are the same but for brightness, contrast and saturation.
    a, b = first["image"].flatten(1), third["image"].flatten(1)
    both = torch.stack(
        [torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(a, b, strict=True)]
    )
    assert both.min() > 0.9


def test_without_them_every_epoch_is_new() -> None:
    first, _, third = epochs(3, fresh=0)
    assert not torch.equal(first["joints_3d"], third["joints_3d"])


def test_a_resumed_training_sees_the_same_pictures() -> None:
    """A store that has seen nothing gives bit for bit what a full one gives."""
    whole, resumed = epochs(4, fresh=2)[-1], epochs(4, fresh=2, skip=3)[-1]
    assert whole.keys() == resumed.keys()
    for key in whole:
        assert torch.equal(whole[key], resumed[key]), key


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(UsageError, match="fresh_epochs"):
        SyntheticDataModule(fresh_epochs=-1)


# ---- kept in a folder ----------------------------------------------------------------------------


def module(keep: str = "", **changes: Any) -> SyntheticDataModule:
    args: dict[str, Any] = {"train_samples": 16, "val_samples": 16, "batch_size": 8, **changes}
    spec = InputSpec("image", 32)
    found = SyntheticDataModule(**args, fresh_epochs=1, input_spec=spec, keep=keep)
    found.setup("fit")
    return found


def pictures(data: SyntheticDataModule, split: str) -> Tensor:
    """Of an epoch of training, or of validation, in the order of their places."""
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    slots, images = [], []
    for batch in loader:
        slots.append(batch["slot"])
        images.append(data.on_after_batch_transfer(batch, 0)["image"])
    return torch.cat(images)[torch.cat(slots).argsort()]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_gives_other_trainings_what_is_rendered(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def counted(samples: Samples, *args: Any, **kwargs: Any) -> PoseBatch:
        rendered.append(len(samples["joints"]))
        return render_batch(samples, *args, **kwargs)

    monkeypatch.setattr("datamodules.synthetic.render_batch", counted)
    folder = str(tmp_path / "pictures")
    expected = pictures(module(), split)
    assert torch.equal(pictures(module(folder), split), expected)
    rendered.clear()
    # Its first batch says what a batch holds; the rest is read, whatever the size of the batches.
    assert torch.equal(pictures(module(folder, batch_size=4), split), expected)
    assert rendered == [4]
    rendered.clear()
    assert not torch.equal(pictures(module(folder, world_seed=1), split), expected)
    assert rendered == [8, 8]
    changes: dict[str, Any] = {"noise": 0.01, "val_samples": 8, "seed": 1, "bodies_per_subject": 2}
    for name, value in changes.items():
        if (split, name) not in {("train", "val_samples"), ("val", "seed")}:
            rendered.clear()
            pictures(module(folder, **{name: value}), split)
            assert sum(rendered) == (8 if name == "val_samples" else 16), name


def test_validation_pictures_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = module()
    first = pictures(data, "val")
    monkeypatch.setattr("datamodules.synthetic.render_batch", None)
    assert torch.equal(pictures(data, "val"), first)


def test_what_another_method_sees_is_drawn_anew() -> None:
    data = module()
    pictures(data, "train")
    data.input_spec = InputSpec("image", 48)
    assert pictures(data, "train").shape[-1] == 48
    assert pictures(data, "val").shape[-1] == 48


def test_what_does_not_fit_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = pictures(module(), "val")
    monkeypatch.setattr("datamodules.synthetic._VALIDATION_BYTES", 16 * 3 * 32 * 32 - 1)
    data = module()
    for _ in range(2):
        assert torch.equal(pictures(data, "val"), first)
    assert data._stores["val"][1].slots == 0


def test_a_folder_without_room_or_right_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        pictures(module(str(tmp_path / "file")), "train")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("datamodules.store.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="0 MiB free"):
        pictures(module(str(tmp_path / "full")), "train")
