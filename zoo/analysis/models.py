"""Models and data of an analysis, and their predictions side by side."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from torch.utils.data import default_collate

from datamodules.base import PoseDataModule
from zoo.base import InputSpec, PoseModule
from zoo.batch import PoseBatch
from zoo.checkpoint import load, read_stored
from zoo.errors import DataError, UsageError, suggest
from zoo.files import write_atomically
from zoo.registry import dataset_class, dataset_names, get_method
from zoo.runs import check_writable
from zoo.skeleton import Skeleton

__all__ = [
    "Opened", "Predicted", "batches", "chosen", "limb_names", "open_models", "predict_split",
    "write_csv",
]  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A loaded model with the data it is looked at on.

    Attributes:
        label: what figures and files call it.
        model: in eval mode, on its device.
        data: with the model's input specification.
    """

    label: str
    model: PoseModule
    data: PoseDataModule


@dataclass(frozen=True)
class Predicted:
    """Poses of N frames: ``pred`` and ``truth`` (N, J, 3) mm, ``valid`` (N, J), ids (N,)."""

    pred: Tensor
    truth: Tensor
    valid: Tensor
    ids: Mapping[str, Tensor]


class _DataParser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UsageError(" ".join(str(ex or message).split())[:400])


def _datamodule(name: str, words: Sequence[str], spec: InputSpec, batch: int) -> PoseDataModule:
    parser = _DataParser(prog="zoo analyse", exit_on_error=False)
    kind = dataset_class(name)
    parser.add_class_arguments(kind, "data", fail_untyped=False, skip={"input_spec"})
    parser.set_defaults({"data.batch_size": batch})
    try:
        config = parser.parse_args(list(words))
    except ArgumentError as error:
        raise UsageError(" ".join(str(error).split())[:400]) from error
    data = cast(PoseDataModule, parser.instantiate_classes(config)["data"])
    data.input_spec = spec
    data.prepare_data()
    return data


def open_models(args: argparse.Namespace, rest: Sequence[str]) -> list[Opened]:
    """Loads every MODEL of the command line, each with a data module of its own input.

    Raises:
        ZooError: an unknown name or flag, a damaged file, a folder that cannot be written.
    """
    from zoo.fit import check_gpus

    device = "cuda" if check_gpus(args.gpus)["accelerator"] == "gpu" else "cpu"
    opened: list[Opened] = []
    for word in args.models:
        label, given, source = word.partition("=")
        if not given:
            label, source = word if "/" not in word else Path(word).name, word
        if label in [one.label for one in opened]:
            raise UsageError(f"two models are called {label!r}; write LABEL=MODEL")
        record = get_method(read_stored(source).method)
        name = args.data or record.data
        if name not in dataset_names():
            raise UsageError(suggest(name, dataset_names(), "data set"))
        model = load(source).to(device)
        data = _datamodule(name, rest, model.input_spec, args.batch_size)
        if model.skeleton_name != data.skeleton_name:
            raise UsageError(
                f"{source} predicts {model.skeleton_name}, the data has {data.skeleton_name}"
            )
        if args.action and args.action not in data.action_names:
            raise UsageError(suggest(args.action, data.action_names, "action"))
        opened.append(Opened(label, model, data))
    check_writable(args.out)
    return opened


def _dataset(data: PoseDataModule, split: str) -> Any:
    data.setup("test" if split == "test" else "validate")
    return data.test_set if split == "test" else data.val_set


def _fetch(dataset: Any, indices: Sequence[int]) -> dict[str, Any]:
    """One collated batch, as the loader would hand it over."""
    if hasattr(dataset, "__getitems__"):
        return dict(dataset.__getitems__(list(indices)))
    return dict(default_collate([dataset[i] for i in indices]))


def batches(
    one: Opened, split: str, indices: Sequence[int], spec: InputSpec | None = None, size: int = 64
) -> Iterator[PoseBatch]:
    """Full batches of chosen samples of a split, on the model's device.

    Args:
        one: the model and its data.
        split: ``val`` or ``test``.
        indices: of samples.
        spec: another input than the model's, such as longer clips.
        size: samples a batch.
    """
    one.data.input_spec = spec or one.model.input_spec
    dataset = _dataset(one.data, split)
    for start in range(0, len(indices), size):
        raw = _fetch(dataset, indices[start : start + size])
        moved = {k: v.to(one.model.device) if isinstance(v, Tensor) else v for k, v in raw.items()}
        yield cast(PoseBatch, one.data.on_after_batch_transfer(moved, 0))


def chosen(one: Opened, args: argparse.Namespace) -> list[int]:
    """Indices of the samples that the flags ask for, evenly spaced.

    Raises:
        DataError: none is left.
    """
    one.data.input_spec = one.model.input_spec
    dataset = _dataset(one.data, args.split)
    indices = list(range(len(dataset)))
    if args.action:
        wanted = one.data.action_names.index(args.action)
        keep: list[int] = []
        for start in range(0, len(indices), 512):
            part = indices[start : start + 512]
            raw = _fetch(dataset, part)
            keep += [i for i, a in zip(part, raw["action"].tolist(), strict=True) if a == wanted]
        indices = keep
    if args.samples and args.samples < len(indices):
        step = len(indices) / args.samples
        indices = [indices[int((k + 0.5) * step)] for k in range(args.samples)]
    if not indices:
        raise DataError(f"the {args.split} split has no sample of action {args.action!r}")
    return indices


def predict_split(one: Opened, args: argparse.Namespace) -> Predicted:
    """The model's poses on the samples that the flags ask for."""
    columns: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for batch in batches(one, args.split, chosen(one, args), size=args.batch_size):
            pred = one.model(batch)["pred_3d"]
            cut = cast(dict[str, Tensor], one.model.select_frames(batch))
            values = {"pred": pred, "truth": cut["joints_3d"], "valid": cut["valid_3d"]}
            values = {k: v.flatten(0, 1) for k, v in values.items()}
            frames = pred.shape[1]
            for key in ("subject", "action", "camera", "sequence", "frame"):
                values[key] = cut[key].repeat_interleave(frames)
            for key, value in values.items():
                columns.setdefault(key, []).append(value.cpu())
    joined = {key: torch.cat(parts) for key, parts in columns.items()}
    pred, truth, valid = (joined.pop(key) for key in ("pred", "truth", "valid"))
    return Predicted(pred, truth, valid, joined)


def limb_names(skeleton: Skeleton) -> list[str]:
    """A name for each bone: its child joint's."""
    return [skeleton.joints[child] for child, _ in skeleton.bones]


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Writes a CSV file under a temporary name and renames it; floats with six digits."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows])
    return write_atomically(path, text.getvalue().encode())
