"""A small copy of VideoPose3D's pair of files, from synthetic people."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodules.synth.human36m_cdf import joints_32
from datamodules.synth.people import People, Take

__all__ = ["write"]

_LEFT, _RIGHT = [4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]


def _name(take: Take) -> str:
    from datamodules.synth.human36m_cdf import file_stem

    return file_stem(take).replace("TakingPhoto", "Photo").replace("WalkingDog", "WalkDog")


def write(root: Path, people: People) -> None:
    """``data_3d_h36m.npz`` (metres, world, float32) and ``data_2d_h36m_gt.npz`` (px)."""
    deep: dict[str, dict[str, np.ndarray]] = {}
    flat: dict[str, dict[str, list[np.ndarray]]] = {}
    for take in people.takes:
        name = _name(take)
        metres = joints_32(take.world) / 1000
        deep.setdefault(take.subject, {})[name] = metres.astype(np.float32)
        flat.setdefault(take.subject, {})[name] = [
            people.pixels(take, camera).astype(np.float32)
            for camera in people.cameras[take.subject]
        ]
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / "data_3d_h36m.npz", positions_3d=deep)  # type: ignore[arg-type]
    metadata = {
        "layout_name": "h36m", "num_joints": 17, "keypoints_symmetry": [_LEFT, _RIGHT],
    }  # fmt: skip
    np.savez_compressed(
        root / "data_2d_h36m_gt.npz",
        metadata=metadata,  # type: ignore[arg-type]
        positions_2d=flat,  # type: ignore[arg-type]
    )
