"""Pictures that are shown again: the same people and crops, other colours, whatever was kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datamodules.synthetic import SyntheticDataModule
from zoo.base import InputSpec
from zoo.errors import UsageError


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
