"""NIfTI files: volumes with their affine, and masks beside them."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from core.data.files import readable
from core.modality import Unreadable

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
        affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as error:  # noqa: BLE001 - a damaged header fails in any way
        raise Unreadable(f"damaged NIfTI ({type(error).__name__})") from None
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


def _values(image: Any) -> Array:
    """Whole numbers as they are stored where nothing scales them, else float32."""
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) == (1.0, 0.0):
        return np.asarray(image.dataobj.get_unscaled())
    if float(slope).is_integer() and float(intercept).is_integer():
        stored = np.asarray(image.dataobj.get_unscaled())
        if stored.dtype.kind in "iu":
            return np.asarray(stored.astype(np.int64) * int(slope) + int(intercept))
    return np.asarray(image.dataobj, dtype=np.float32)
