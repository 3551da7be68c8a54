"""Volumes written as DICOM series whose pixels and places are known exactly."""

import random
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

SLOPE, INTERCEPT = 1, -1024


def turned(degrees=20.0):
    """A rotation about an oblique axis."""
    a, b = np.radians([degrees, degrees / 2])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


def affine(spacing=(0.8, 0.9, 2.5), rotation=None, origin=(-20.0, 35.0, 12.0)):
    """An affine of RAS millimetres."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if rotation is None else rotation) * np.array(spacing)
    matrix[:3, 3] = origin
    return matrix


def phantom(shape=(20, 24, 16), seed=0):
    """HU of something with an inside and an outside, int16."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    body = (grid**2).sum(0) < 0.8
    values = np.where(body, 40 + 30 * rng.normal(size=shape), -1000 + 5 * rng.normal(size=shape))
    return np.clip(np.round(values), -1024, 3000).astype(np.int16)


def base(path, **fields):
    """A dataset with what every image has."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = fields.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = fields.setdefault("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    defaults = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "PatientID": "P1",
        "PatientName": "Nobody",
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
    }
    for name, value in (defaults | fields).items():
        setattr(dataset, name, value)
    return dataset


def write_series(folder, values, matrix, *, shuffle=True, **fields):
    """Write HU ``values`` (columns, rows, slices) with affine ``matrix`` (RAS), a file per slice; gives their paths.

    Names and instance numbers are shuffled, so that neither tells the order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    across, down = lps[:3, 0] / lengths[0], lps[:3, 1] / lengths[1]
    numbers = list(range(values.shape[2]))
    if shuffle:
        random.Random(0).shuffle(numbers)
    paths = []
    for k, number in enumerate(numbers):
        path = folder / f"IM{number:04d}"
        own = {
            "Rows": values.shape[1],
            "Columns": values.shape[0],
            "PixelSpacing": [float(lengths[1]), float(lengths[0])],
            "SliceThickness": float(lengths[2]),
            "ImageOrientationPatient": [f"{x:.12g}"[:16] for x in (*across, *down)],
            "ImagePositionPatient": [f"{x:.10f}"[:16] for x in (lps @ [0, 0, k, 1])[:3]],
            "InstanceNumber": number,
            "RescaleSlope": SLOPE,
            "RescaleIntercept": INTERCEPT,
        }
        dataset = base(path, **(own | fields))
        dataset.PixelData = (values[:, :, k].T.astype(np.int32) - INTERCEPT).astype("<u2").tobytes()
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_image(path, pixels, **fields):
    """Write stored values (rows, columns) or (frames, rows, columns) as one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.asarray(pixels)
    rows, columns = stored.shape[-2:]
    bits = stored.dtype.itemsize * 8
    own = {
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
    }
    if stored.ndim == 3:
        own["NumberOfFrames"] = len(stored)
    dataset = base(path, **(own | fields))
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**fields):
    """A dataset inside another."""
    dataset = Dataset()
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def write_enhanced(path, values, matrix, order=None, **fields):
    """Write HU ``values`` as one enhanced object, its frames in ``order``."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    directions = [f"{x:.12g}"[:16] for x in (*(lps[:3, 0] / lengths[0]), *(lps[:3, 1] / lengths[1]))]
    order = list(range(values.shape[2])) if order is None else order
    frames = [
        item(
            PlanePositionSequence=Sequence(
                [item(ImagePositionPatient=[f"{x:.10f}"[:16] for x in (lps @ [0, 0, k, 1])[:3]])]
            )
        )
        for k in order
    ]
    shared = item(
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=directions)]),
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[float(lengths[1]), float(lengths[0])])]),
        PixelValueTransformationSequence=Sequence([item(RescaleSlope=SLOPE, RescaleIntercept=INTERCEPT)]),
    )
    stored = (values[:, :, order].transpose(2, 1, 0).astype(np.int32) - INTERCEPT).astype(np.uint16)
    return write_image(
        Path(path),
        stored,
        SOPClassUID=EnhancedCTImageStorage,
        PerFrameFunctionalGroupsSequence=Sequence(frames),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        **fields,
    )
