"""``PoseDataModule``: what every data set of the zoo offers to the methods."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.errors import UsageError
from zoo.protocols import Protocol
from zoo.skeleton import Skeleton, get_skeleton

__all__ = ["EpochSampler", "PoseDataModule", "SplitName"]

SplitName = Literal["train", "val", "test"]


class EpochSampler(DistributedSampler[Any]):
    """Indices of a training epoch that carry the epoch's number.

    Yields ``epoch * len(dataset) + item``, so ``epoch, item = divmod(index, len(dataset))`` tells
    the dataset both, in any worker and any process, also after a resume: Lightning calls
    ``set_epoch`` at the start of every epoch. The order depends on the seed and the epoch alone,
    and no item comes twice: where the items do not divide among the processes, the last few of the
    order are left out.

    Args:
        dataset: anything with a length.
        num_replicas: number of processes; each yields its share of the same order.
        rank: number of this process.
        seed: of the order.
        shuffle: false keeps the items in order.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(
            dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed,
            drop_last=True,
        )  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        for item in super().__iter__():
            yield first + int(item)


class RestOfEpoch(DistributedSampler[Any]):
    """A sampler that goes on amid an epoch: nothing that it has shown already is made again.

    Args:
        sampler: of a training set.
        epoch: the one that was interrupted; others are whole.
        done: how many of its items this process has had.
    """

    def __init__(self, sampler: DistributedSampler[Any], epoch: int, done: int) -> None:
        self.sampler, self.first, self.done = sampler, epoch, done

    def __iter__(self) -> Iterator[Any]:
        amid = self.sampler.epoch == self.first
        return islice(iter(self.sampler), self.done if amid else 0, None)

    def __len__(self) -> int:
        return len(self.sampler)  # of a whole epoch, as Lightning counts

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch's number on."""
        self.sampler.set_epoch(epoch)


class TrainLoader(DataLoader[Any]):
    """A loader whose place in the epoch :class:`RestOfEpoch` restores.

    Lightning asks for these two methods before it believes that a loader can be resumed; the place
    itself is in Lightning's own progress, see ``PoseDataModule.train_dataloader``.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Epoch, and batches of it that are done, where a resumed training goes on; else (0, 0)."""
    if trainer is None or not trainer.fit_loop.restarting:
        return 0, 0
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    amid = epoch.processed < epoch.started
    return epoch.processed, batches.processed if amid else 0


def _as_it_comes(batch: Any) -> Any:
    """A dataset with ``__getitems__`` has collated the batch already."""
    return batch


class PoseDataModule(pl.LightningDataModule):
    """Base class of every data set.

    The contract, used by ``zoo.base.PoseModule`` and checked by the tests:

    * ``train_set``, ``val_set`` and ``test_set`` are map-style datasets. The one for training
      is indexed by :class:`EpochSampler`. One with ``__getitems__(indices)`` returns a whole
      batch (a dict of tensors), others return samples that the default collation stacks.
    * A batch that reaches the method is a full :class:`~zoo.batch.PoseBatch`; what is left to do
      on the device that trains is done in ``on_after_batch_transfer``.
    * ``action_names``, ``protocol`` and ``training_poses`` answer before any loader is made, the
      same on every process.

    Args:
        batch_size: samples a batch and process.
        num_workers: processes that prepare batches.
        seed: of the training samples and their order.
        input_spec: what the method wants to be fed; the command line fills it in.
    """

    skeleton_name: ClassVar[str] = "h36m_17"

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        input_spec: InputSpec | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        if num_workers < 0:
            raise UsageError(f"num_workers is {num_workers}; it must be 0 or more")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.input_spec = input_spec or InputSpec()

    # ---- what a data set writes -----------------------------------------------------------------

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names that the batch's ``action`` indexes."""
        raise NotImplementedError

    def protocol(self, split: SplitName) -> Protocol:
        """The definition of the metrics of ``val`` or ``test``."""
        raise NotImplementedError

    def training_poses(self, count: int = 20000) -> PoseBatch:
        """Poses of the training set without images, for fitting statistics.

        Args:
            count: at most so many, spread over the training set.

        Returns:
            ``joints_3d`` (N, 1, J, 3), ``root_3d``, ``valid_3d``, ``joints_2d``, ``valid_2d``,
            ``intrinsics``, ``world_to_camera`` and the ids; deterministic, the same on every
            process.
        """
        raise NotImplementedError

    @property
    def has_clips(self) -> bool:
        """Whether there is video; false for sets of single pictures, whose clips repeat them."""
        return True

    @property
    def train_set(self) -> Dataset[Any]:
        """Training samples."""
        raise NotImplementedError

    @property
    def val_set(self) -> Dataset[Any]:
        """Validation samples."""
        raise NotImplementedError

    @property
    def test_set(self) -> Dataset[Any]:
        """Test samples."""
        raise NotImplementedError

    # ---- what follows from it -------------------------------------------------------------------

    @property
    def skeleton(self) -> Skeleton:
        """The skeleton of all joints in the batches."""
        return get_skeleton(self.skeleton_name)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of one epoch, in an order keyed by seed and epoch.

        Where Lightning resumes a training amid an epoch, the first epoch begins after the batches
        that are done.
        """
        return self._loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation sample once."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test sample once."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test samples."""
        return self._loader(self.test_set)

    def train_sampler(
        self, dataset: Dataset[Any], num_replicas: int, rank: int
    ) -> DistributedSampler[Any]:
        """The order of a training epoch on one of ``num_replicas`` processes."""
        return EpochSampler(dataset, num_replicas=num_replicas, rank=rank, seed=self.seed)

    def _loader(self, dataset: Dataset[Any], train: bool = False) -> DataLoader[Any]:
        """The one place where loaders are made."""
        world, rank = 1, 0
        if self.trainer is not None:
            world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = None
        if train:
            size = len(dataset)  # type: ignore[arg-type]
            if size < world:
                raise UsageError(f"{size} training samples are too few for {world} processes")
            sampler = self.train_sampler(dataset, world, rank)
            epoch, batches = _place(self.trainer)
            sampler.set_epoch(epoch)  # with workers, batches are made before Lightning says it
            if 0 < batches * self.batch_size < len(sampler):
                sampler = RestOfEpoch(sampler, epoch, batches * self.batch_size)
        whole = hasattr(dataset, "__getitems__")
        kind: type[DataLoader[Any]] = TrainLoader if train else DataLoader
        return kind(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            # The last batch of an epoch may be a single sample, which batch norm cannot take.
            drop_last=sampler is not None and len(sampler) >= self.batch_size,
            collate_fn=_as_it_comes if whole else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
