"""Pixels of DICOM files in true units: every transfer syntax that pydicom and its plug-ins decode.

Errors say what is wrong in words of our own: those of decoders may quote what stands in a header.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
)

from core.data.files import readable
from core.modality import Unreadable
from modalities.medical.headers import is_dicom, quiet

Array = NDArray[Any]
LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Shares of red, green and blue in brightness (ITU-R BT.601)."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def load(path: str) -> Dataset:
    """A whole DICOM file; the syntax of one that does not say it is the one it was read with.

    Raises:
        Unreadable: with the reason.
    """
    readable(Path(path))
    if not is_dicom(path):
        raise Unreadable("is not DICOM")
    try:
        with quiet():
            dataset = pydicom.dcmread(path, force=True)
            _ = [dataset.get(name) for name in ("Rows", *PIXELS)]
    except Exception as error:  # noqa: BLE001 - a damaged header fails in any way
        raise Unreadable(f"damaged DICOM ({type(error).__name__})") from None
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def frames(dataset: Dataset, most: int) -> Array:
    """Stored values (F, H, W) or (F, H, W, 3) as pydicom decodes them, those in YBR turned to RGB.

    Raises:
        Unreadable: if there are none, more than ``most``, or they cannot be decoded.
    """
    if not any(name in dataset for name in PIXELS):
        raise Unreadable("there are no pixels in it")
    count = max(1, int(dataset.get("NumberOfFrames") or 1))
    claimed = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * count
    if not 0 < claimed <= most:
        raise Unreadable(f"claims {claimed} pixels, the limit is {most}")
    try:
        with quiet():
            array = np.asarray(dataset.pixel_array)
    except MemoryError:
        raise Unreadable("its pixels do not fit into memory") from None
    except Exception as error:  # noqa: BLE001 - decoders raise whatever they like
        raise Unreadable(_why(dataset, error)) from None
    return array if count > 1 else array[None]


def _why(dataset: Dataset, error: Exception) -> str:
    text, syntax = str(error), dataset.file_meta.get("TransferSyntaxUID")
    known = isinstance(syntax, UID) and syntax.is_transfer_syntax and not syntax.is_private
    encoding = f"encoded as {syntax.name}" if known else "of an unknown encoding"
    plain = known and syntax in (
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    )
    if plain and "bytes" in text:
        return "its pixels are cut off: there are fewer bytes than rows, columns and frames ask for"
    # pydicom says so of encodings that it knows no decoder for, or whose decoders are not installed.
    if isinstance(error, NotImplementedError) or "missing dependencies" in text:
        return f"its pixels are {encoding}, which no installed decoder reads"
    if syntax == JPEGExtended12Bit and find_spec("libjpeg") is None:
        return f"its pixels are {encoding}; the extra maeflow[jpeg] has a decoder for it"
    if isinstance(error, AttributeError):
        return "its header lacks what is needed to decode the pixels"
    return f"its pixels, {encoding}, cannot be decoded ({type(error).__name__})"


def true_values(array: Array, dataset: Dataset) -> Array:
    """Grey values (F, H, W) in the units of their modality, such as HU: slope, intercept, or a table of values.

    Whole numbers stay whole where slope and intercept are; others are float64 (PS3.3, C.11.1).

    Raises:
        Unreadable: if the header says how, and it cannot be understood: a wrong unit is worse than no scan.
    """
    per_frame = _transformations(dataset, len(array))
    if per_frame is None and "ModalityLUTSequence" in dataset:
        try:
            with quiet():
                return np.asarray(apply_modality_lut(array, dataset))
        except Exception as error:  # noqa: BLE001 - a damaged table fails in any way
            raise Unreadable(f"its table of values cannot be used ({type(error).__name__})") from None
    pairs = per_frame or [(_number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0))]
    if all(pair == pairs[0] for pair in pairs):
        return line(array, *pairs[0])
    return np.stack([line(frame, *pair).astype(np.float64) for frame, pair in zip(array, pairs, strict=True)])


def line(values: Array, slope: float, intercept: float) -> Array:
    """``values * slope + intercept``: whole numbers in the smallest type they fit into, or float64."""
    if (slope, intercept) == (1.0, 0.0):
        return values
    if values.dtype.kind not in "iu" or not (slope.is_integer() and intercept.is_integer()):
        return values.astype(np.float64) * slope + intercept
    ends = [int(end) * int(slope) + int(intercept) for end in (values.min(), values.max())]
    fitting = next((t for t in (np.int16, np.int32) if all(abs(end) <= np.iinfo(t).max for end in ends)), np.int64)
    wide: Array = values.astype(np.int64 if fitting is np.int64 else np.int32)
    wide *= int(slope)
    wide += int(intercept)
    return wide.astype(fitting)


def _number(dataset: Dataset, name: str, otherwise: float) -> float:
    """A number of the header; what stands there and is none may not be taken for its absence."""
    said = dataset.get(name)
    if said is None or said == "":
        return otherwise
    try:
        value = float(said)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise Unreadable(f"its {name} is no number")
    return value


def _transformations(dataset: Dataset, count: int) -> list[tuple[float, float]] | None:
    """Slope and intercept of each frame of an enhanced object; None where it has none of its own."""
    shared = _transformation(first(dataset.get("SharedFunctionalGroupsSequence")))
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    own = [_transformation(group) or shared for group in groups]
    if len(own) == count and any(own):
        return [pair or (1.0, 0.0) for pair in own]
    return [shared] * count if shared else None


def _transformation(group: Dataset | None) -> tuple[float, float] | None:
    found = first(group.get("PixelValueTransformationSequence")) if group is not None else None
    return None if found is None else (_number(found, "RescaleSlope", 1.0), _number(found, "RescaleIntercept", 0.0))


def first(sequence: Any) -> Dataset | None:
    """The first item of a sequence, if there is one."""
    return sequence[0] if sequence else None


def coloured(array: Array, dataset: Dataset) -> Array:
    """Colours for what is stored as numbers of a palette: (F, H, W) to (F, H, W, 3); others as they are."""
    if str(dataset.get("PhotometricInterpretation", "")) != "PALETTE COLOR":
        return array
    try:
        with quiet():
            return np.asarray(apply_color_lut(array, dataset))[..., :3]
    except Exception as error:  # noqa: BLE001 - a damaged palette fails in any way
        raise Unreadable(f"its palette cannot be used ({type(error).__name__})") from None


def upright_grey(values: Array, dataset: Dataset) -> Array:
    """True values of which larger ones are brighter: MONOCHROME1 mirrored within their range (PS3.3, C.7.6.3.1.2).

    The range is that of the stored bits, in true units, or that of the table of values where there is one.
    """
    if str(dataset.get("PhotometricInterpretation", "")) != "MONOCHROME1":
        return values
    table = first(dataset.get("ModalityLUTSequence"))
    if table is not None:
        count, start = int(table.LUTDescriptor[0]) or 2**16, int(table.LUTDescriptor[1])
        ends = true_values(np.arange(start, start + count).reshape(1, 1, -1), dataset)
    else:
        bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 8)
        signed = int(dataset.get("PixelRepresentation") or 0) == 1
        stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        ends = true_values(np.array(stored).reshape(1, 1, 2), dataset)
    turned = float(ends.min()) + float(ends.max()) - values.astype(np.float64)
    return turned.astype(np.int64) if values.dtype.kind in "iu" and turned.flat[0].is_integer() else turned


def luminance(array: Array) -> Array:
    """Brightness (F, H, W) of colours (F, H, W, 3)."""
    return np.asarray(array[..., :3] @ LUMINANCE) if array.ndim == 4 else array
