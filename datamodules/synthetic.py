"""``SyntheticDataModule``: moving, dressed, rendered people, made from a seed; no download.

Laid out like Human3.6M: subjects S1 S5 S6 S7 S8 for training and S9 S11 for test, other bodies for
validation, four calibrated cameras, 50 fps recordings with actions. Bodies and recordings of the
three splits are disjoint.

A sample is first a handful of numbers (pose, body, clothes, camera, light), made on the workers
from a hash of (seed, split, epoch, index): the same for any number of workers and processes. It
becomes a picture and a full :class:`~zoo.batch.PoseBatch` on the device that trains, in
``on_after_batch_transfer``. For methods that take keypoints nothing is rendered.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from datamodules.base import PoseDataModule, SplitName
from datamodules.figure import build_figure, outfit_from_uniforms
from datamodules.motion import MotionBank, bodies
from datamodules.people import Samples, SyntheticPeople
from datamodules.rays import figure_boxes, joints_occluded
from datamodules.recordings import LEVEL, nominal_intrinsics
from datamodules.render import Scene, occluding_boxes, render
from datamodules.store import SampleStore
from datamodules.transforms import (
    apply_colour,
    jitter_matrix,
    pca_of_pixels,
    pca_offset,
    standard_normal,
)
from zoo import geometry, skeleton
from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.errors import OutputError, UsageError
from zoo.geometry import crop_affine, intrinsics_for_crop, project
from zoo.protocols import Protocol, get_protocol
from zoo.skeleton import H36M_17

__all__ = [
    "SyntheticDataModule",
    "SyntheticPeople",
    "make_test_images",
    "render_batch",
    "without_3d",
]

_VALIDATION_BYTES = 512 << 20
"""Of validation pictures that are kept in memory between epochs."""

# ---- from numbers to batches --------------------------------------------------------------------


def render_batch(
    samples: Samples,
    spec: InputSpec,
    *,
    box_jitter: float = 0.0,
    occluders: float = 0.0,
    noise: float = 0.0,
    supersample: int = 1,
) -> PoseBatch:
    """Crops, projects and (for image input) renders samples, on the device they are on.

    Args:
        samples: of :class:`SyntheticPeople`.
        spec: size and scale of the crop; ``keypoints`` renders nothing.
        box_jitter: largest relative change of the crop's side, and half of that of its place; needs
            ``augment`` in ``samples``.
        occluders: probability of each of two boxes in front of the person.
        noise: largest standard deviation of the grain.
        supersample: rays per pixel side.

    Returns:
        A full batch, T frames that share the crop.
    """
    joints = samples["joints"]
    device = joints.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        real = torch.float32 if device.type == "mps" else torch.float64
        count, frames = joints.shape[:2]
        camera = samples["camera_matrix"].to(real)

        def flat(value: Tensor) -> Tensor:
            """(B, ...) -> (B T, ...)."""
            return value[:, None].expand(-1, frames, *value.shape[1:]).flatten(0, 1)

        people, outfit, girth = (
            joints.flatten(0, 1),
            flat(samples["outfit"]),
            flat(samples["girth"]),
        )
        hair = outfit_from_uniforms(outfit).hair_length
        cones = build_figure(people.to(real), girth, hair.to(real))
        box = figure_boxes(cones, flat(camera)).view(count, frames, 4)
        low, high = box[..., :2].amin(1), box[..., 2:].amax(1)
        side = spec.crop_scale * (high - low).amax(-1)
        middle = (low + high) / 2
        if box_jitter > 0 and "augment" in samples:
            u = 2 * samples["augment"][:, :3].to(real) - 1
            middle = middle + 0.5 * box_jitter * side[:, None] * u[:, 1:]
            side = side * (1 + box_jitter * u[:, 0])
        affine = crop_affine(middle, side, spec.image_size)
        intrinsics = intrinsics_for_crop(camera, affine).float()
        boxes = flat(occluding_boxes(samples["boxes"], occluders))
        root = joints[:, :, 0]
        relative = joints - joints[:, :, :1]
        pixels = project(
            (relative.to(real) + root[:, :, None].to(real)), intrinsics[:, None].to(real)
        )
        ones = torch.ones(joints.shape[:3], device=device)
        batch = PoseBatch(
            joints_2d=pixels.float(),
            scores_2d=ones,
            valid_2d=ones.bool(),
            valid_3d=ones.bool(),
            joints_3d=relative,
            root_3d=root,
            intrinsics=intrinsics[:, None].repeat(1, frames, 1, 1),
            crop_to_image=affine.float()[:, None].repeat(1, frames, 1, 1),
            world_to_camera=samples["world_to_camera"],
        )
        for key in ("subject", "action", "camera", "sequence", "frame"):
            batch[key] = samples[key]
        if spec.kind == "image":
            scene = Scene(people, flat(intrinsics), girth, outfit, flat(samples["scene"]), boxes)
            drawn = render(
                scene,
                spec.image_size,
                noise=noise,
                supersample=supersample,
                cones=cones,
                buffers=False,
            )
            batch["image"] = drawn.image.view(count, frames, *drawn.image.shape[1:])
            occluded = drawn.occluded
        else:
            occluded = joints_occluded(cones, people, flat(intrinsics), boxes, spec.image_size)
        batch["occluded"] = occluded.view(count, frames, -1)
    return batch


def without_3d(batch: PoseBatch, image_size: int) -> PoseBatch:
    """What is left of a batch whose data set has 2D labels only, filled as files' batches are.

    Args:
        batch: full; it is not changed.
        image_size: side of the crop in px, for the nominal intrinsics.
    """
    camera = torch.tensor(nominal_intrinsics(image_size), dtype=torch.float32)
    changed = PoseBatch(**batch)
    changed["joints_3d"] = torch.zeros_like(batch["joints_3d"])
    changed["root_3d"] = torch.zeros_like(batch["root_3d"])
    changed["valid_3d"] = torch.zeros_like(batch["valid_3d"])
    changed["intrinsics"] = camera.to(batch["intrinsics"]).expand_as(batch["intrinsics"])
    level = torch.tensor(LEVEL, dtype=torch.float32).to(batch["world_to_camera"])
    changed["world_to_camera"] = level.expand_as(batch["world_to_camera"])
    return changed


class SyntheticDataModule(PoseDataModule):
    """Generated people, rendered while training.

    Args:
        mocap: ``.npz`` file of real motion (``zoo data prepare cmu`` makes one); without it the
            built-in generator moves the people.
        train_samples: samples an epoch; every epoch has new ones.
        val_samples: evenly spaced over the validation recordings and the four cameras.
        test_samples: the same over the test recordings.
        batch_size: samples a batch and process.
        num_workers: processes that prepare the numbers of a batch; they are cheap.
        seed: of the training samples. Validation and test do not depend on it.
        world_seed: of the bodies, the generated motion, and the validation and test samples.
        bodies_per_subject: bodies that each subject number stands for.
        flip: probability that a training sample is mirrored (image, 2D, 3D, camera and labels).
        color_jitter: largest relative change of brightness, contrast and saturation in training.
        pca_color: standard deviation of the colour noise along the principal components of the
            training pixels (Krizhevsky et al. 2012); 0 is none.
        box_jitter: largest relative change of the crop's side in training; its place moves by up
            to half of that.
        occluders: probability of each of two boxes in front of the person, in training.
        test_occluders: the same in validation and test.
        noise: largest standard deviation of the grain of the pictures.
        rotation: largest roll of the camera in training, degrees.
        supersample: rays per pixel side; 2 smooths edges at four times the price.
        fresh_epochs: after so many epochs the pictures of the first ones are shown again, in other
            colours, from the memory of the device that trains (about 35 kB a picture of 108 px);
            0 renders every epoch anew. Validation pictures are always kept, if they fit in 512 MiB.
        keep: folder that keeps the pictures of the fresh epochs and of validation in files instead,
            for other trainings: whatever has the same people, seed and crops finds them rendered
            (the rows of a table, the runs of a sweep). It can be deleted at any time in between.
        domain: ``studio`` is the room with four cameras; ``outdoor`` has other people, clothes,
            backgrounds and cameras, and stands for pictures from elsewhere.
        labels_2d_only: the batches have no 3D and no camera, as those of MPII and LSP: for the
            2D-only side of ``--data mixed``.
        protocol: name of the evaluation protocol; empty takes ``synthetic-val`` for validation and
            ``synthetic-test`` for test. Protocols of other data sets are refused: their subjects,
            trials and frame rates mean nothing here.
        input_spec: what the method wants to be fed; the command line fills it in.
    """

    def __init__(
        self,
        mocap: str | None = None,
        train_samples: int = 20000,
        val_samples: int = 1000,
        test_samples: int = 2000,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        world_seed: int = 0,
        bodies_per_subject: int = 8,
        flip: float = 0.5,
        color_jitter: float = 0.2,
        pca_color: float = 0.0,
        box_jitter: float = 0.1,
        occluders: float = 0.1,
        test_occluders: float = 0.0,
        noise: float = 0.04,
        rotation: float = 0.0,
        supersample: int = 1,
        fresh_epochs: int = 0,
        keep: str = "",
        domain: str = "studio",
        labels_2d_only: bool = False,
        protocol: str = "",
        input_spec: InputSpec | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, input_spec)
        if protocol and get_protocol(protocol).dataset != "synthetic":
            raise UsageError(
                f"protocol {protocol} is defined on {get_protocol(protocol).dataset}; generated "
                "people have synthetic-val (validate) and synthetic-test (test)"
            )
        counts = {
            "train_samples": train_samples, "val_samples": val_samples,
            "test_samples": test_samples, "bodies_per_subject": bodies_per_subject,
            "supersample": supersample,
        }  # fmt: skip
        if fresh_epochs < 0:
            raise UsageError(f"fresh_epochs is {fresh_epochs}; it must not be negative")
        for name, value in counts.items():
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        shares = {
            "flip": flip, "occluders": occluders, "test_occluders": test_occluders,
            "color_jitter": color_jitter, "box_jitter": box_jitter,
        }  # fmt: skip
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share}; it must lie between 0 and 1")
        for name, width in {"pca_color": pca_color, "noise": noise, "rotation": rotation}.items():
            if width < 0:
                raise UsageError(f"{name} is {width}; it must not be negative")
        self.mocap = mocap
        self.train_samples = train_samples
        self.val_samples = val_samples
        self.test_samples = test_samples
        self.world_seed = world_seed
        self.bodies_per_subject = bodies_per_subject
        self.flip = flip
        self.color_jitter = color_jitter
        self.pca_color = pca_color
        self.box_jitter = box_jitter
        self.occluders = occluders
        self.test_occluders = test_occluders
        self.noise = noise
        self.rotation = rotation
        self.supersample = supersample
        self.fresh_epochs = fresh_epochs
        self.keep = keep
        self.domain = domain
        self.labels_2d_only = labels_2d_only
        self.protocol_name = protocol
        self._file: MotionBank | None = None
        self._banks: dict[str, MotionBank] = {}
        self._sets: dict[str, SyntheticPeople] = {}
        self._pca: tuple[Tensor, Tensor] | None = None
        self._stores: dict[str, tuple[InputSpec, SampleStore]] = {}

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def action_names(self) -> tuple[str, ...]:
        """Actions of the generator, or those of the motion file."""
        if self.mocap is None:
            from datamodules.generator import ACTIONS

            return ACTIONS
        return self._read().action_names

    def protocol(self, split: SplitName) -> Protocol:
        """``synthetic-val`` or ``synthetic-test``."""
        return get_protocol("synthetic-test" if split == "test" else "synthetic-val")

    def prepare_data(self) -> None:
        """Checks the motion file, so that a mistake shows before anything is built."""
        if self.mocap is not None:
            MotionBank.from_npz(self.mocap)

    def setup(self, stage: str | None = None) -> None:
        """Makes the data sets of a stage.

        Raises:
            zoo.errors.UsageError: the protocol that was asked for is that of another stage.
        """
        for other, name in (("validate", "synthetic-test"), ("test", "synthetic-val")):
            if stage == other and self.protocol_name == name:
                command = "test" if other == "validate" else "validate"
                raise UsageError(f"protocol {name} belongs to `zoo {command}`")
        needed: dict[str, tuple[SplitName, ...]] = {
            "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",),
        }  # fmt: skip
        for split in needed.get(stage or "", ("train", "val", "test")):
            self._set(split)
        if self.pca_color > 0 and stage in (None, "fit"):
            self.pca_system()

    @property
    def train_set(self) -> SyntheticPeople:
        """Training samples as numbers."""
        return self._set("train")

    @property
    def val_set(self) -> SyntheticPeople:
        """Validation samples as numbers."""
        return self._set("val")

    @property
    def test_set(self) -> SyntheticPeople:
        """Test samples as numbers."""
        return self._set("test")

    def training_poses(self, count: int = 20000) -> PoseBatch:
        """The first ``count`` poses of training's first epochs, no images; see the base class."""
        spec = InputSpec(
            "keypoints", self.input_spec.image_size, 1, 1.0, self.input_spec.crop_scale
        )
        dataset = self._make("train", spec)
        parts = []
        for first in range(0, count, 2000):
            samples = dataset.__getitems__(range(first, min(first + 2000, count)))
            parts.append(render_batch(samples, spec))
        merged = {
            key: torch.cat([cast(dict[str, Tensor], part)[key] for part in parts])
            for key in parts[0]
        }
        if self.labels_2d_only:
            return without_3d(cast(PoseBatch, merged), spec.image_size)
        return cast(PoseBatch, merged)

    def pca_system(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Scales (3,) and axes (3, 3) of the RGB values of rendered training pixels, float64."""
        if self._pca is None:
            spec = InputSpec("image", 32, 1, 1.0, self.input_spec.crop_scale)
            samples = self._make("train", spec).__getitems__(range(512))
            images = render_batch(
                samples, spec, box_jitter=self.box_jitter, occluders=self.occluders,
                noise=self.noise,
            )["image"]  # fmt: skip
            self._pca = pca_of_pixels(images)
        if self._pca[0].device != torch.device(device):
            values, vectors = self._pca
            self._pca = values.to(device), vectors.to(device)
        return self._pca

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> PoseBatch:
        """Numbers to a full batch, on the device they have reached; augments training samples."""
        if "joints" not in batch:
            return cast(PoseBatch, batch)
        train = "augment" in batch

        def make() -> PoseBatch:
            return render_batch(
                batch,
                self.input_spec,
                box_jitter=self.box_jitter if train else 0.0,
                occluders=self.occluders if train else self.test_occluders,
                noise=self.noise,
                supersample=self.supersample,
            )

        if "slot" in batch:
            result = self._store("train" if train else "val").fetch(batch["slot"], make)
        else:
            result = make()
        if self.labels_2d_only:
            result = without_3d(result, self.input_spec.image_size)
        return self._augment(result, batch["augment"]) if train else result

    # ---- inside ---------------------------------------------------------------------------------

    def _store(self, split: SplitName) -> SampleStore:
        """What keeps the rendered samples of a split."""
        spec = self.input_spec
        if split not in self._stores or self._stores[split][0] != spec:
            slots = self.fresh_epochs * self.train_samples
            if split == "val":
                slots = len(self._set("val"))
                size = slots * spec.frames * 3 * spec.image_size**2
                slots = slots if self.keep or size <= _VALIDATION_BYTES else 0
            kept = self.keep and spec.kind == "image"  # other samples are made faster than read
            folder = Path(self.keep) / self._fingerprint(split) if kept else None
            self._stores[split] = (spec, SampleStore(slots, folder))
        return self._stores[split][1]

    def _fingerprint(self, split: SplitName) -> str:
        """Of all that the pictures of a split follow from, the code that draws them included."""
        facts: dict[str, Any] = {
            "split": split, "spec": repr(self.input_spec), "world_seed": self.world_seed,
            "bodies": self.bodies_per_subject, "domain": self.domain, "noise": self.noise,
            "supersample": self.supersample, "torch": torch.__version__,
        }  # fmt: skip
        names = ["val_samples", "test_occluders"]
        if split == "train":
            names = ["seed", "train_samples", "fresh_epochs", "flip", "box_jitter", "occluders",
                     "rotation"]  # fmt: skip
        facts |= {name: getattr(self, name) for name in names}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        here = Path(__file__).parent
        sources = [*sorted(here.glob("*.py")), Path(geometry.__file__), Path(skeleton.__file__)]
        for path in [*sources, *([Path(self.mocap)] if self.mocap else [])]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return f"{split}-{digest.hexdigest()[:16]}"

    def _augment(self, batch: PoseBatch, u: Tensor) -> PoseBatch:
        """Colours; columns of ``u``: 0-2 the crop (used before), 3-5 jitter, 6-8 colour noise."""
        if "image" not in batch or (self.color_jitter == 0 and self.pca_color == 0):
            return batch
        with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
            image = batch["image"]
            mean = image.mean((1, 3, 4))
            matrix, offset = jitter_matrix(mean, u[:, 3:6], self.color_jitter)
            if self.pca_color > 0:
                alpha = self.pca_color * standard_normal(u[:, 6:9])
                offset = offset + pca_offset(alpha, *self.pca_system(u.device))
            batch["image"] = apply_colour(image, matrix, offset)
        return batch

    def _read(self) -> MotionBank:
        assert self.mocap is not None
        if self._file is None:
            self._file = MotionBank.from_npz(self.mocap)
        return self._file

    def _bank(self, split: SplitName) -> MotionBank:
        if split not in self._banks:
            if self.mocap is None:
                self._banks[split] = MotionBank.generated(self.world_seed, splits=[split])
            else:
                self._banks[split] = self._read().split(split)
        return self._banks[split]

    def _make(self, split: SplitName, spec: InputSpec) -> SyntheticPeople:
        samples = {
            "train": self.train_samples, "val": self.val_samples, "test": self.test_samples
        }[split]  # fmt: skip
        return SyntheticPeople(
            split,
            self._bank(split),
            bodies(split, self._people_seed, self.bodies_per_subject),
            self.action_names,
            samples,
            spec,
            self.seed if split == "train" else self.world_seed,
            self.rotation,
            self.flip,
            self.fresh_epochs,
            self.domain,
        )

    @property
    def _people_seed(self) -> int:
        """Of the bodies: people of one domain are not those of the other."""
        return self.world_seed + (1_000_003 if self.domain == "outdoor" else 0)

    def _set(self, split: SplitName) -> SyntheticPeople:
        if split not in self._sets or self._sets[split].spec != self.input_spec:
            self._sets[split] = self._make(split, self.input_spec)
        return self._sets[split]


# ---- pictures for a demonstration ---------------------------------------------------------------


def make_test_images(
    count: int,
    folder: str | os.PathLike[str],
    *,
    mocap: str | None = None,
    size: int = 384,
    world_seed: int = 0,
) -> list[Path]:
    """Writes pictures of test people and their true poses.

    Args:
        count: how many, spread over the test recordings.
        folder: made if missing; receives ``person_000.jpg`` ... and ``truth.json``.
        mocap: motion file; ``None`` takes the generator.
        size: side of the pictures in px.
        world_seed: as in :class:`SyntheticDataModule`.

    Returns:
        The paths of the pictures. ``truth.json`` lists for each its ``joints_3d`` (17, 3) mm,
        camera frame, pelvis at the origin, ``joints_2d`` (17, 2) px, ``root_3d`` and
        ``intrinsics``.

    Raises:
        zoo.errors.OutputError: the folder cannot be written.
    """
    spec = InputSpec("image", size, 1)
    module = SyntheticDataModule(mocap, test_samples=count, world_seed=world_seed, input_spec=spec)
    dataset = module.test_set
    batch = render_batch(dataset.__getitems__(range(len(dataset))), spec, noise=0.02, supersample=2)
    pixels = (batch["image"][:, 0] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    target = Path(folder)
    truth: dict[str, Any] = {
        "skeleton": H36M_17.name, "joints": H36M_17.joints, "unit": "mm", "frame": "camera",
        "origin": H36M_17.root, "pictures": [],
    }  # fmt: skip
    paths = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pixels):
            path = target / f"person_{i:03d}.jpg"
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG", quality=92)
            _write(path, buffer.getvalue())
            entry: dict[str, Any] = {"file": path.name}
            for key in ("joints_3d", "joints_2d", "root_3d", "intrinsics"):
                value = cast(dict[str, Tensor], batch)[key][i, 0]
                entry[key] = [
                    [round(float(v), 3) for v in row] for row in value.reshape(-1, value.shape[-1])
                ]
            truth["pictures"].append(entry)
            paths.append(path)
        _write(target / "truth.json", json.dumps(truth).encode())
    except OSError as error:
        raise OutputError(f"{target}: cannot write the pictures ({error.strerror})") from error
    return paths


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
