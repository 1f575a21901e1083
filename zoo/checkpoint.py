"""Weights: find them, verify them, load them without running any code from the file.

Shipped weights are safetensors files named ``NAME.TAG-<first 8 of sha256>.safetensors`` whose
metadata carries the method's name and constructor arguments as JSON. Resumable training checkpoints
are Lightning's ``.ckpt``, read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoo.base import PoseModule
from zoo.errors import CheckpointError, OutputError, UsageError
from zoo.registry import (
    MethodRecord,
    WeightRecord,
    create,
    get_method,
    method_names,
    resource,
    split_weight_name,
)

__all__ = [
    "Stored",
    "load",
    "load_into",
    "read_stored",
    "registered_file",
    "save_weights",
    "take_parts",
]

FORMAT = "zoo-weights-1"
# Run-time switches that Lightning or the base class keep in checkpoints but shipped files drop.
_METRIC_PREFIXES = ("val_metrics.", "test_metrics.")


@dataclass(frozen=True)
class Stored:
    """What a weight file or checkpoint holds.

    Attributes:
        method: registry name of the method it belongs to.
        args: the constructor arguments of the stored model.
        state: parameter and buffer tensors by name, on the CPU, in float32.
        path: where it was read from.
    """

    method: str
    args: dict[str, Any]
    state: dict[str, Tensor]
    path: Path


def _looks_like_path(name: str) -> bool:
    return name.endswith((".ckpt", ".safetensors")) or "/" in name or os.sep in name


def load(name: str | Path) -> PoseModule:
    """A trained model in eval mode.

    Args:
        name: a registry name (``"park"``: its first weights), a name with a weight tag
            (``"park.small"``), a ``.safetensors`` file, or a run's checkpoint
            (``"runs/park-small/checkpoints/last.ckpt"``).

    Raises:
        UsageError: unknown name, or a name without registered weights.
        CheckpointError: the file is missing, damaged, or not of a registered method.
    """
    stored = read_stored(name)
    # A backbone's own pretrained weights would be fetched only to be overwritten.
    args = {k: v and not k.endswith("pretrained") for k, v in stored.args.items() if v is True}
    model = create(stored.method, **{**stored.args, **args})
    load_into(model, stored)
    return model.eval()


def read_stored(name: str | Path) -> Stored:
    """Reads what :func:`load` would load, without building the model."""
    if isinstance(name, Path) or _looks_like_path(name):
        return _read_file(Path(name))
    method, tag = split_weight_name(name)
    record = get_method(method)
    path = registered_file(record, record.weight(tag))
    return _read_safetensors(path)


def registered_file(record: MethodRecord, weight: WeightRecord) -> Path:
    """The verified file of registered weights.

    Raises:
        CheckpointError: the file is absent (the message has the command that trains it) or its
            sha256 differs from the registry's.
    """
    path = resource(weight.file)
    if not path.exists():
        command = weight.command or f"zoo fit --method {record.name} --recipe small"
        raise CheckpointError(f"weights of {record.name} not found at {path}; train: {command}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != weight.sha256:
        raise CheckpointError(
            f"{path}: sha256 {digest[:12]}... is not the registered {weight.sha256[:12]}...; "
            "the file is damaged or was replaced: restore it from the release"
        )
    return path


def _read_file(path: Path) -> Stored:
    if not path.exists():
        raise CheckpointError(f"no file {path}; give a .ckpt of a run or a .safetensors file")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give {path}/checkpoints/last.ckpt or a file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".ckpt":
        return _read_lightning(path)
    raise CheckpointError(f"{path}: neither .ckpt nor .safetensors")


def _read_safetensors(path: Path) -> Stored:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no zoo weights (metadata lack format={FORMAT})")
    state = {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}
    return Stored(metadata["method"], json.loads(metadata["args"]), state, path)


def _read_lightning(path: Path) -> Stored:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds objects other than tensors and plain values and was not loaded; "
            "the zoo reads checkpoints of `zoo fit`"
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint (half-written?)") from error
    if not isinstance(content, dict) or "zoo" not in content or "state_dict" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of `zoo fit`")
    state = {k: v for k, v in content["state_dict"].items() if not k.startswith(_METRIC_PREFIXES)}
    method = content["zoo"]["method"]
    if method not in method_names():
        raise CheckpointError(f"{path} belongs to method {method!r}, which is not registered here")
    return Stored(method, dict(content.get("hyper_parameters", {})), state, path)


def load_into(model: PoseModule, stored: Stored) -> None:
    """Copies stored weights into a model of the same sizes.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(_METRIC_PREFIXES)}
    missing = sorted(own.keys() - stored.state.keys())
    extra = sorted(stored.state.keys() - own.keys())
    differ = [k for k in own.keys() & stored.state.keys() if own[k].shape != stored.state[k].shape]
    for keys, what in ((missing, "lacks"), (extra, "has unknown"), (sorted(differ), "differs in")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(
                f"{stored.path} does not fit this model: it {what} {keys[0]}{more}; "
                f"it was stored by {stored.method!r}: use its sizes (drop --model.* flags)"
            )
    model.load_state_dict(stored.state, strict=False)


def take_parts(
    model: PoseModule, source: str | Path | Stored, parts: tuple[str, ...], where: str = ""
) -> None:
    """Copies the parameters and buffers whose names start with ``parts`` from another training.

    Args:
        model: its other tensors stay.
        source: what :func:`load` takes, or what :func:`read_stored` has read.
        parts: prefixes.
        where: what stands before these names in the source.

    Raises:
        CheckpointError: they are missing there, or of another size.
    """
    stored = source if isinstance(source, Stored) else read_stored(source)
    wanted = {k: v for k, v in model.state_dict().items() if k.startswith(parts)}
    for key, value in wanted.items():
        name = where + key
        if name not in stored.state:
            raise CheckpointError(f"{stored.path} ({stored.method}) has no {name} to take over")
        if stored.state[name].shape != value.shape:
            raise CheckpointError(
                f"{stored.path}: {name} is {tuple(stored.state[name].shape)}, this model needs "
                f"{tuple(value.shape)}; use the sizes it was trained with"
            )
    model.load_state_dict({key: stored.state[where + key] for key in wanted}, strict=False)


def save_weights(model: PoseModule, path: str | Path, half: bool = True) -> Path:
    """Writes a weight file that :func:`load` reads, under a temporary name first.

    Args:
        model: a registered method (``model.zoo_name``).
        path: target; ``{sha}`` in its name is replaced by the first 8 digits of the sha256.
        half: store float32 tensors as float16; float64 ones (a fitted prior) stay exact.

    Returns:
        The path written.

    Raises:
        UsageError: the model does not come from the registry.
        OutputError: the file cannot be written.
    """
    if not model.zoo_name:
        raise UsageError("only models made by zoo.create, zoo.load or `zoo fit` can be saved")
    state = {
        k: v.to(torch.float16 if half and v.dtype == torch.float32 else v.dtype, copy=True)
        .detach()
        .cpu()
        .contiguous()
        for k, v in model.state_dict().items()
        if not k.startswith(_METRIC_PREFIXES)
    }
    overflow = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if overflow:
        raise CheckpointError(f"{overflow[0]} is not finite as stored; use half=False")
    metadata = {"format": FORMAT, "method": model.zoo_name, "args": json.dumps(dict(model.hparams))}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, temporary, metadata=metadata)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        final = path.with_name(path.name.replace("{sha}", digest[:8]))
        os.replace(temporary, final)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return final
