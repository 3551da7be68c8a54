"""Items into records: scans in their place, in true units, without anything that tells whose they are."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.data import bricks
from core.data.masks import mask_file
from core.modality import Item, Record, Unreadable
from core.segmentation import IGNORE
from modalities.medical import nifti, pixels, series
from modalities.medical.config import MedicalSettings
from modalities.medical.finding import is_nifti
from modalities.medical.geometry import box_above, moved, resample, spacing_of, tilt, to_ras
from modalities.medical.headers import header_of

Array = NDArray[Any]
Floats = NDArray[np.float64]
FIXED_POINT = {"percentile": 8192.0, "zscore": 2048.0}
"""What stands for 1 in stored whole numbers, where values are relative to the scan's own."""
LIMITS = {"percentile": (-1.0, 3.0), "zscore": (-15.0, 15.0)}
"""Relative values beyond are cut."""
PERCENTILES = (0.5, 99.5)
TILTED = 1.0
"""Degrees off a right angle from which on a volume counts as tilted."""
ELSEWHERE = 0.1
"""Millimetres, and millimetres per voxel, by which the affines of a scan and its mask may differ."""
ROUNDING = 0.02
"""Largest error of rounding to whole numbers, as a share of the values' deviation."""


def read(item: Item, settings: MedicalSettings, *, classes: int = 0) -> list[Record]:
    """The records of an item: volumes, or frames of an image.

    Where there are ``classes``, its label is the path of a mask whose values are below their number.

    Raises:
        Unreadable: with the reason.
    """
    if settings.volumes:
        scans = _nifti(item, settings) if is_nifti(item.path) else _series(item, settings)
        several = [s for s in scans if not _blank(s[0])] if len(scans) > 1 else scans
        if not several:
            raise Unreadable("all its volumes are empty")
        keys = [item.key] if len(several) == 1 else [f"{item.key}#{number:03d}" for number in range(len(several))]
        return [_volume(item, key, *scan, settings, classes) for key, scan in zip(keys, several, strict=True)]
    if is_nifti(item.path):
        raise Unreadable("a volume; this recipe is for images of two axes")
    if classes and item.target is not None:
        raise Unreadable("masks of images of two axes are not read here; modality image does, of PNG files")
    return _images(item, settings)


# --- volumes ----------------------------------------------------------------------------------------------------------


def _nifti(item: Item, settings: MedicalSettings) -> list[tuple[Array, Floats, dict[str, Any]]]:
    values, affine = nifti.read(item.path, settings.refuse.most_voxels)
    several = [values] if values.ndim == 3 else list(np.moveaxis(values, -1, 0))
    return [(volume, affine, {}) for volume in several]


def _series(item: Item, settings: MedicalSettings) -> list[tuple[Array, Floats, dict[str, Any]]]:
    found, header = series.volumes(item.parts or (item.path,), settings.refuse)
    facts = {"modality": header.modality, "burned_in": header.burned_in, "secondary": header.secondary}
    return [(v.values, v.affine, facts | {"filled": v.filled, "repeated_slices": v.repeated}) for v in found]


def _volume(
    item: Item,
    key: str,
    values: Array,
    affine: Floats,
    facts: dict[str, Any],
    settings: MedicalSettings,
    classes: int,
) -> Record:
    _check(values)
    volume, placed = to_ras(values, affine)
    if min(volume.shape) < settings.refuse.fewest_slices:
        raise Unreadable(f"a volume needs {settings.refuse.fewest_slices} slices, this is of {volume.shape} voxels")
    if settings.refuse.tilted and tilt(placed) > TILTED:
        raise Unreadable(f"its axes are {tilt(placed):.0f} degrees off a right angle (tilted gantry)")
    file = mask_file(item) if classes else None
    mask = None if file is None else _mask(file, volume.shape, placed, classes)
    if settings.spacing is not None:
        most = settings.refuse.most_voxels
        mask = None if mask is None else resample(mask, placed, settings.spacing, most, nearest=True)[0]
        volume, placed = resample(volume, placed, settings.spacing, most)
    if settings.crop_above is not None:
        box = box_above(volume, settings.crop_above)
        volume, mask = volume[box], None if mask is None else mask[box]
        placed = moved(placed, [part.start or 0 for part in box])
    stored = _stored(volume, settings)
    facts = facts | {
        "tilt": round(tilt(placed), 1),
        "spacing": _rounded(spacing_of(placed)),
        "affine": [_rounded(row) for row in placed],
    }
    return _record(item, key, stored, facts | {"least": stored.min().item()}, settings, mask)


def _rounded(numbers: Any) -> list[float]:
    return [round(float(number), 6) for number in numbers]


def _mask(path: Path, shape: tuple[int, ...], placed: Floats, classes: int) -> Array:
    """The mask of a volume, voxel for voxel, brought into RAS by its own affine, which may differ from the scan's.

    Raises:
        Unreadable: if it lies elsewhere than the scan, or holds values that no class has.
    """
    values, affine = nifti.read(str(path), int(np.prod(shape, dtype=np.int64)))
    mask, there = to_ras(values, affine)
    if mask.shape != shape:
        raise Unreadable(f"its mask is of {mask.shape} voxels, the scan of {shape}")
    if not np.allclose(there, placed, atol=ELSEWHERE):
        raise Unreadable("its mask lies elsewhere in the patient than the scan")
    whole = np.round(mask)
    if not (np.abs(whole - mask).max() <= 1e-3 and whole.min() >= 0 and whole.max() <= IGNORE):
        raise Unreadable("its mask holds values that are not whole numbers of 0 to 255")
    found = np.unique(whole)
    if unknown := [int(value) for value in found if classes <= value < IGNORE]:
        raise Unreadable(f"its mask holds {unknown[0]}, and task.classes names {classes} classes, from 0")
    return np.asarray(whole.astype(np.uint8))


# --- images of two axes -----------------------------------------------------------------------------------------------


def _images(item: Item, settings: MedicalSettings) -> list[Record]:
    dataset = pixels.load(item.path)
    header = header_of(dataset, item.path)
    if isinstance(header, str):
        raise Unreadable(f"no image: {header}")
    series.check(header, settings.refuse)
    everything = pixels.frames(dataset, settings.refuse.most_voxels)
    chosen = _chosen(len(everything), settings.frames)
    stored = pixels.coloured(everything[chosen], dataset)
    colour = stored.ndim == 4
    values = stored if colour else pixels.upright_grey(_true(everything, chosen, dataset), dataset)
    if colour and settings.channels == 1:
        values = pixels.luminance(values)
    elif not colour and settings.channels == 3:
        values = np.repeat(values[..., None], 3, axis=-1)
    facts = {"modality": header.modality, "burned_in": header.burned_in, "secondary": header.secondary}
    records = []
    for number, value in zip(chosen, values, strict=True):
        _check(value)
        image = _stored(_shrunk(value, settings.store.short_side), settings)
        key = item.key if len(chosen) == 1 else f"{item.key}#{number:03d}"
        records.append(_record(item, key, image, facts | {"least": image.min().item()}, settings, None))
    return records


def _chosen(frames: int, wanted: int) -> Array:
    """Frames that are taken, spread evenly; the middle one where one is wanted."""
    return np.unique(np.linspace(0, frames - 1, wanted).round().astype(int)) if wanted > 1 else np.array([frames // 2])


def _true(everything: Array, chosen: Array, dataset: Any) -> Array:
    """True values of the chosen frames; frames may have slopes of their own, which are told in order."""
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return pixels.true_values(everything, dataset)[chosen]
    return pixels.true_values(everything[chosen], dataset)


def _shrunk(image: Array, short_side: int | None) -> Array:
    """(H, W) or (H, W, 3), smaller ones as they are."""
    if short_side is None or min(image.shape[:2]) <= short_side:
        return image
    factor = short_side / min(image.shape[:2])
    size = (max(short_side, round(image.shape[1] * factor)), max(short_side, round(image.shape[0] * factor)))
    planes = image.reshape(*image.shape[:2], -1).astype(np.float32)
    resized = [
        np.asarray(Image.fromarray(planes[..., c]).resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))
        for c in range(planes.shape[-1])
    ]
    return np.stack(resized, axis=-1).reshape(size[1], size[0], *image.shape[2:])


# --- values -----------------------------------------------------------------------------------------------------------


def _blank(values: Array) -> bool:
    return bool(values.min() == values.max())


def _check(values: Array) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Unreadable("holds values that are not finite")
    if _blank(values):
        raise Unreadable(f"all its values are {values.flat[0]:g}")


def _stored(values: Array, settings: MedicalSettings) -> Array:
    """Values in the type they are kept in; relative ones in fixed point.

    Raises:
        Unreadable: if they do not fit.
    """
    kind = settings.intensity.kind
    if kind != "windows":
        values = np.clip(_relative(values, kind), *LIMITS[kind])
        if settings.store.values == "float32":
            return values.astype(np.float32)
        return np.asarray(np.round(values * FIXED_POINT[kind]).astype(np.int16))
    if settings.store.values == "float32":
        return values.astype(np.float32)
    whole = np.round(values) if values.dtype.kind == "f" else values
    low, high = whole.min(), whole.max()
    limits = np.iinfo(np.int16)
    exact = whole is values or float(np.abs(whole - values).max()) <= ROUNDING * float(values.std())
    if not exact:
        raise Unreadable("its values are fractions, which whole numbers would blur; set data.store.values=float32")
    if not (limits.min <= low and high <= limits.max):
        raise Unreadable(
            f"values from {low:g} to {high:g} do not fit into whole numbers of 16 bits; set data.store.values=float32"
        )
    return np.asarray(whole.astype(np.int16))


def _relative(values: Array, kind: str) -> Array:
    """Values as shares of the scan's own range, or in deviations from its mean; both of what is not 0."""
    values = values.astype(np.float32)
    body = values[values != 0]
    body = body if body.size > 0.01 * values.size else values.reshape(-1)
    if kind == "percentile":
        low, high = np.percentile(body if body.size < 2**22 else body[:: body.size // 2**22 + 1], PERCENTILES)
        return np.asarray((values - low) / max(float(high - low), 1e-6))
    return np.asarray((values - body.mean()) / max(float(body.std()), 1e-6))


def _record(
    item: Item, key: str, stored: Array, facts: dict[str, Any], settings: MedicalSettings, mask: Array | None
) -> Record:
    side = settings.store.brick if settings.volumes else max(stored.shape)
    payload = bricks.encode(stored, side, settings.store.codec, mask)
    target = item.target if mask is None else np.unique(mask[mask != IGNORE]).tolist() or None
    return Record(key, payload, bricks.CODEC, stored.shape, str(stored.dtype), target, item.group, facts)


def fixed_point(settings: MedicalSettings) -> float:
    """What stored values are divided by to become relative ones."""
    whole = settings.store.values == "int16"
    return FIXED_POINT.get(settings.intensity.kind, 1.0) if whole else 1.0
