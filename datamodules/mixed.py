"""``MixedDataModule``: several data sets in one fit, in chosen proportions.

A set with 3D and one with 2D labels only share every batch (Wang et al. 2019, Algorithm 1: five
frames of Human3.6M and three pictures of MPII; Tome et al. 2017 train their 2D network on both).
Samples without 3D have ``valid_3d`` false: they carry no 3D loss, and all methods take them.

Which set a place in a batch belongs to depends on the place alone, so the proportions hold in every
batch, on every process; which sample stands there is a function of (seed, epoch, place). A set
begins its next round, in another order, when all of its samples have been shown, whatever the
epochs of the mixture, so no sample comes twice before every other has come once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, default_collate

from datamodules.base import PoseDataModule, SplitName
from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.errors import UsageError, suggest
from zoo.protocols import Protocol
from zoo.registry import dataset_class, dataset_names

__all__ = ["MixedDataModule", "MixedSampler", "MixedSet", "places"]

Int = NDArray[np.int64]

_SEQUENCE_STEP = 1_000_000_000
_OWN = ("batch_size", "num_workers", "seed", "input_spec")
_PER_FRAME = (
    "image", "joints_2d", "scores_2d", "valid_2d", "valid_3d", "occluded", "joints_3d", "root_3d",
    "intrinsics", "crop_to_image",
)  # fmt: skip


def places(weights: Sequence[float], count: int) -> Int:
    """(count,) the set that each place belongs to.

    The set that lacks most of its share comes next, so among the first n places each set has its
    share of n to within one place, and the pattern repeats where the shares do.

    Args:
        weights: positive, of any sum.
        count: places.
    """
    exact = [Fraction(str(w)) for w in weights]
    total = sum(exact)
    shares = [w / total for w in exact]
    given = [0] * len(shares)
    # Shares are fractions with a common denominator: after that many places it starts again.
    period = 1
    for share in shares:
        period = int(np.lcm(period, share.denominator))
    chosen = []
    for place in range(min(count, period)):
        lack = [share * (place + 1) - have for share, have in zip(shares, given, strict=True)]
        best = lack.index(max(lack))
        given[best] += 1
        chosen.append(best)
    repeated = np.tile(np.array(chosen, np.int64), -(-count // max(len(chosen), 1)))
    return repeated[:count]


class MixedSet(Dataset[Any]):
    """The training samples of several sets as one.

    An index is ``number of the set + sets * index of the set``, as :class:`MixedSampler` makes it.
    A batch is ``{"parts": [{"set", "places", "batch"}, ...]}``: what each set made of its share,
    and where it stands in the batch.

    Args:
        sets: indexed by :class:`~datamodules.base.EpochSampler`'s numbers, epoch and item.
        size: samples an epoch of the mixture.
    """

    def __init__(self, sets: Sequence[Dataset[Any]], size: int) -> None:
        self.sets = list(sets)
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch in parts."""
        which, own = np.array([divmod(int(i), len(self.sets))[::-1] for i in indices]).T
        parts = []
        for number, dataset in enumerate(self.sets):
            mine = np.flatnonzero(which == number)
            if not len(mine):
                continue
            index = [int(i) for i in own[mine]]
            if hasattr(dataset, "__getitems__"):
                batch = dataset.__getitems__(index)
            else:
                batch = default_collate([dataset[i] for i in index])
            parts.append({"set": number, "places": torch.from_numpy(mine), "batch": batch})
        return {"parts": parts}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([index])


class MixedSampler(DistributedSampler[Any]):
    """The order of a mixture's epoch on one process.

    Every process has the same sequence of sets (:func:`places`), and of each set the samples whose
    number in the set's round is its own modulo the number of processes: none is shown twice.

    Args:
        dataset: the mixture.
        weights: of its sets.
        num_replicas: number of processes.
        rank: number of this process.
        seed: of the orders.
    """

    def __init__(
        self,
        dataset: MixedSet,
        weights: Sequence[float],
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            cast(Any, dataset), num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed
        )
        self.mixture = dataset
        self.places = places(weights, self.num_samples)
        self._orders: dict[int, tuple[int, Int]] = {}

    def __iter__(self) -> Iterator[int]:
        sets = self.mixture.sets
        used = [0] * len(sets)
        an_epoch = np.bincount(self.places, minlength=len(sets))
        for number in self.places.tolist():
            mine = self.epoch * int(an_epoch[number]) + used[number]
            used[number] += 1
            count = mine * self.num_replicas + self.rank
            size = len(cast(Any, sets[number]))
            own_epoch, place = divmod(count, size)
            item = int(self._order(number, own_epoch, size)[place])
            yield (own_epoch * size + item) * len(sets) + number

    def _order(self, number: int, epoch: int, size: int) -> Int:
        """The order of a set's samples in one of its rounds."""
        known = self._orders.get(number)
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self.seed, number, epoch])
            known = self._orders[number] = (epoch, rng.permutation(size))
        return known[1]


class MixedDataModule(PoseDataModule):
    """Several data sets in one fit; validation and test are those of the first set.

    Example: ``--data mixed --data.sets "[{name: human36m, root: H36M}, {name: mpii, root: MPII}]"
    --data.weights "[5, 3]"``; without files the second set can be ``{name: synthetic, domain:
    outdoor, labels_2d_only: true, stills: true}``.

    Args:
        sets: for each set its registered ``name``, its own arguments, and ``stills`` (see below).
        weights: how many samples of each set stand in a batch, up to a factor; default: equally
            many. A batch size that is a multiple of their sum has the same numbers in every batch.
        train_samples: samples an epoch, of all sets and processes; 0 = as many as show the first
            set once.
        stills: what single pictures are where a method takes clips. ``clip``: a clip of one frame
            (Wang et al. 2019): the first frame is the picture with its labels, the others repeat
            the picture and have no labels, which makes them padding: no loss, and nothing before
            the first frame. ``repeat``: the picture with its labels in every frame, for methods
            that predict the middle one. Sets without video are stills, others if they say
            ``stills: true``.
        batch_size: samples a batch and process.
        num_workers: processes that prepare batches.
        seed: of the samples of all sets and their orders.
        flip: probability that a training sample is mirrored, of the sets that do not say their own;
            ``None`` leaves each set its default.
        color_jitter: the same, largest relative change of brightness, contrast and saturation.
        pca_color: the same, standard deviation of the colour noise.
        protocol: of the first set; empty takes its own default.
        input_spec: what the method wants to be fed; the command line fills it in.
    """

    def __init__(
        self,
        sets: list[dict[str, Any]] | None = None,
        weights: list[float] | None = None,
        train_samples: int = 0,
        stills: Literal["clip", "repeat"] = "clip",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        flip: float | None = None,
        color_jitter: float | None = None,
        pca_color: float | None = None,
        protocol: str = "",
        input_spec: InputSpec | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, input_spec)
        if not sets:
            raise UsageError(
                '--data mixed needs --data.sets, such as "[{name: synthetic}, {name: synthetic, '
                'domain: outdoor, labels_2d_only: true}]"'
            )
        if weights is None:
            weights = [1.0] * len(sets)
        if len(weights) != len(sets) or not all(np.isfinite(w) and w > 0 for w in weights):
            raise UsageError(f"weights are {weights}; {len(sets)} sets need as many, all positive")
        if train_samples < 0:
            raise UsageError(f"train_samples is {train_samples}; it must not be negative")
        if stills not in ("clip", "repeat"):
            raise UsageError(suggest(stills, ("clip", "repeat"), "stills"))
        self.weights = [float(w) for w in weights]
        self.train_samples = train_samples
        self.stills = stills
        shared = {"flip": flip, "color_jitter": color_jitter, "pca_color": pca_color}
        given = {key: value for key, value in shared.items() if value is not None}
        self.modules_by_set = []
        for number, entry in enumerate(sets):
            extra = {"protocol": protocol} if number == 0 and protocol else {}
            self.modules_by_set.append(self._nested(number, dict(entry), given, extra))
        self._said_stills = [entry.get("stills") for entry in sets]

    def _nested(
        self, number: int, entry: dict[str, Any], shared: dict[str, Any], extra: dict[str, Any]
    ) -> PoseDataModule:
        """The data module of one entry of ``sets``.

        Args:
            number: of the entry.
            entry: name and arguments.
            shared: arguments for sets that take them and do not say their own.
            extra: arguments over those of the entry.
        """
        name = entry.pop("name", None)
        where = f"set {number + 1} of --data.sets"
        if not isinstance(name, str):
            raise UsageError(f"{where} has no name; known: {', '.join(dataset_names())}")
        cls = dataset_class(name)
        if issubclass(cls, MixedDataModule):
            raise UsageError(f"{where}: a mixture cannot hold another one")
        stills = entry.pop("stills", None)
        if not isinstance(stills, bool | None):
            raise UsageError(f"{where}: stills is true or false, not {stills!r}")
        known = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]
        for key in entry:
            if key in _OWN:
                raise UsageError(f"{where}: {key} belongs to the mixture, --data.{key}")
            if key not in known:
                raise UsageError(f"{where}: {suggest(key, known, f'argument of {name}:')}")
        shared = {key: value for key, value in shared.items() if key in known}
        arguments = {**shared, **entry, **extra, "seed": self.seed}
        try:
            return cast(PoseDataModule, cls(**arguments))
        except TypeError as error:
            raise UsageError(f"{where}: {error}") from error

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def first(self) -> PoseDataModule:
        """The set that validation and test belong to."""
        return self._modules[0]

    @property
    def _modules(self) -> list[PoseDataModule]:
        """The sets' modules, told what the method wants."""
        for number, module in enumerate(self.modules_by_set):
            spec = self.input_spec
            if number and spec.frames > 1 and self.is_stills(number):
                spec = replace(spec, frames=1)
            if module.input_spec != spec:
                module.input_spec = spec
        return self.modules_by_set

    def is_stills(self, number: int) -> bool:
        """Whether a set counts as single pictures."""
        said = self._said_stills[number]
        return not self.modules_by_set[number].has_clips if said is None else bool(said)

    @property
    def action_names(self) -> tuple[str, ...]:
        """The first set's, then the others' own."""
        names = [n for module in self.modules_by_set for n in module.action_names]
        return tuple(dict.fromkeys(names))

    def protocol(self, split: SplitName) -> Protocol:
        """The first set's."""
        return self.first.protocol(split)

    def prepare_data(self) -> None:
        """Checks the files of every set."""
        for module in self._modules:
            module.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Makes the data sets of a stage; only training looks at the other sets."""
        self.first.setup(cast(Any, stage))
        if stage in (None, "fit"):
            for module in self._modules[1:]:
                len(cast(Any, module.train_set))

    def training_poses(self, count: int = 20000) -> PoseBatch:
        """Poses of the sets with 3D, by their weights; see the base class."""
        parts = []
        total = sum(self.weights)
        for number, module in enumerate(self._modules):
            share = max(1, round(count * self.weights[number] / total))
            poses = module.training_poses(share)
            if bool(poses["valid_3d"].any()):
                parts.append(self._own(poses, number))
        if not parts:
            raise UsageError("none of the sets of --data mixed has 3D poses for training")
        return _joined(parts)

    @property
    def train_set(self) -> MixedSet:
        """The sets' training samples as one."""
        sets = [module.train_set for module in self._modules]
        share = self.weights[0] / sum(self.weights)
        size = self.train_samples or max(1, round(len(cast(Any, sets[0])) / share))
        return MixedSet(sets, size)

    @property
    def val_set(self) -> Dataset[Any]:
        """The first set's validation samples."""
        return self.first.val_set

    @property
    def test_set(self) -> Dataset[Any]:
        """The first set's test samples."""
        return self.first.test_set

    def train_sampler(
        self, dataset: Dataset[Any], num_replicas: int, rank: int
    ) -> DistributedSampler[Any]:
        """See :class:`MixedSampler`."""
        return MixedSampler(
            cast(MixedSet, dataset), self.weights, num_replicas=num_replicas, rank=rank,
            seed=self.seed,
        )  # fmt: skip

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> PoseBatch:
        """Each set finishes its part; the parts become one batch in the order of their places."""
        if "parts" not in batch:
            return self.first.on_after_batch_transfer(batch, dataloader_idx)
        parts, order = [], []
        for part in batch["parts"]:
            number = int(part["set"])
            module = self._modules[number]
            own = self._own(module.on_after_batch_transfer(part["batch"], dataloader_idx), number)
            if own["joints_2d"].shape[1] < self.input_spec.frames:
                own = _as_clips(own, self.input_spec.frames, self.stills)
            parts.append(own)
            order.append(part["places"])
        back = torch.cat(order).argsort()
        joined = cast(dict[str, Tensor], _joined(parts))
        return cast(PoseBatch, {key: value[back] for key, value in joined.items()})

    # ---- inside ---------------------------------------------------------------------------------

    def _own(self, batch: PoseBatch, number: int) -> PoseBatch:
        """A set's batch with the mixture's ids."""
        changed = PoseBatch(**batch)
        if number:
            names = self.action_names
            own = self.modules_by_set[number].action_names
            if "action" in batch and own:
                table = torch.tensor([names.index(n) for n in own], device=batch["action"].device)
                changed["action"] = table[batch["action"]]
            if "sequence" in batch:
                changed["sequence"] = batch["sequence"] + number * _SEQUENCE_STEP
        return changed


def _as_clips(batch: PoseBatch, frames: int, stills: str) -> PoseBatch:
    """(B, 1, ...) entries as (B, frames, ...); see ``stills`` of :class:`MixedDataModule`."""
    clips = dict(cast(dict[str, Tensor], batch))
    for key in _PER_FRAME:
        if key not in clips:
            continue
        repeated = clips[key].repeat_interleave(frames, dim=1)
        if stills == "clip" and key in ("valid_2d", "valid_3d", "occluded", "scores_2d"):
            repeated[:, 1:] = 0
        clips[key] = repeated
    return cast(PoseBatch, clips)


def _joined(parts: Sequence[PoseBatch]) -> PoseBatch:
    """The parts one after another; keys that a part lacks are left out."""
    keys = [key for key in parts[0] if all(key in part for part in parts)]
    joined = {key: torch.cat([cast(dict[str, Tensor], p)[key] for p in parts]) for key in keys}
    return cast(PoseBatch, joined)
