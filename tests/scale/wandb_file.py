"""Reads what an offline W&B run has written: records in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _FULL, _FIRST, _LAST = 32768, 7, 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a ``.wandb`` file."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        room = _BLOCK - at % _BLOCK
        if room < _HEADER:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        piece = data[at + _HEADER : at + _HEADER + length]
        parts = piece if kind in (_FULL, _FIRST) else parts + piece
        at += _HEADER + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def read_run(folder: Path) -> dict[str, Any]:
    """``config``, ``history`` (rows), ``files`` and ``artifacts`` of an offline run's folder."""
    (path,) = folder.glob("*.wandb")
    found: dict[str, Any] = {"config": {}, "history": [], "artifacts": []}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            found["history"].append(
                {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            )
        elif kind in ("run", "config"):
            config = record.run.config if kind == "run" else record.config
            for item in config.update:
                key = item.key or ".".join(item.nested_key)
                found["config"][key] = json.loads(item.value_json)
        elif kind == "artifact":
            found["artifacts"].append(record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found["artifacts"].append(record.request.log_artifact.artifact)
    files = folder / "files"
    found["files"] = {str(p.relative_to(files)) for p in files.rglob("*") if p.is_file()}
    return found
