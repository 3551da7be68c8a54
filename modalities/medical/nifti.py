"""NIfTI files: volumes with their affine, and masks beside them."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from core.data.files import readable
from core.modality import Unreadable
from modalities.medical.pixels import line

Array = NDArray[Any]


def read(path: str, most: int) -> tuple[Array, NDArray[np.float64]]:
    """Values (X, Y, Z) or (X, Y, Z, volumes) in true units, and the affine of RAS millimetres.

    Raises:
        Unreadable: with the reason.
    """
    readable(Path(path))
    try:
        image: Any = nibabel.load(path)
        shape = tuple(int(n) for n in image.shape)
        affine = _millimetres(image)
    except Exception as error:  # noqa: BLE001 - a damaged header fails in any way
        raise Unreadable(f"damaged NIfTI ({type(error).__name__})") from None
    if affine is None:
        raise Unreadable("does not say how it lies in the patient (neither sform nor qform)")
    if image.get_data_dtype().kind not in "iuf":
        raise Unreadable(f"voxels of type {image.get_data_dtype()} are no values")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or 0 in shape:
        raise Unreadable(f"an array of shape {shape} is no volume")
    if np.prod(shape, dtype=np.int64) > most:
        raise Unreadable(f"claims {np.prod(shape, dtype=np.int64)} voxels, the limit is {most}")
    try:
        values = _values(image).reshape(shape)
    except Exception as error:  # noqa: BLE001 - cut off or damaged data fail in any way
        raise Unreadable(f"its voxels cannot be read ({type(error).__name__})") from None
    return values, affine


def _millimetres(image: Any) -> NDArray[np.float64] | None:
    """The affine, whatever unit the file counts in; None where it has none of its own."""
    header = image.header
    if "sform_code" in header and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        return None
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
    return affine


def _values(image: Any) -> Array:
    """Whole numbers as they are stored where nothing scales them, or whole ones do; else float32."""
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    if slope.is_integer() and intercept.is_integer():
        return line(np.asarray(image.dataobj.get_unscaled()), slope, intercept)
    return np.asarray(image.dataobj, dtype=np.float32)
