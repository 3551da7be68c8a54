"""Masks as files that people's tools open: PNG for two axes, NIfTI where it is known where voxels are, else NumPy's."""

import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.workspace import write_bytes


def write_mask(folder: Path, stem: str, mask: NDArray[np.uint8], facts: Mapping[str, Any]) -> str:
    """Write ``mask`` (*whole) below ``folder``; gives its relative path. The same mask is always the same bytes.

    ``facts`` of the record may say where voxels are: ``affine`` (4, 4), from their numbers to millimetres in RAS.
    """
    data, suffix = _encoded(mask, facts.get("affine"))
    file = folder / f"{stem}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, data)
    return file.relative_to(folder).as_posix()


def _encoded(mask: NDArray[np.uint8], affine: Any) -> tuple[bytes, str]:
    out = io.BytesIO()
    if mask.ndim == 2:
        from PIL import Image

        Image.fromarray(mask).save(out, "PNG")
        return out.getvalue(), ".png"
    if mask.ndim == 3 and affine is not None:
        from nibabel.nifti1 import Nifti1Image

        image = Nifti1Image(mask, np.array(affine, dtype=np.float64))
        image.header.set_xyzt_units("mm")
        return gzip.compress(image.to_bytes(), mtime=0), ".nii.gz"
    np.save(out, mask)
    return out.getvalue(), ".npy"
