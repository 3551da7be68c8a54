"""Every DICOM file that ships with pydicom and pydicom-data: read, quarantined or passed over, and why.

Where a file is read, its values are compared with pydicom's own ``pixel_array`` after the modality's table or slope.

    python benchmarks/dicom_files.py
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut

from core.modality import Unreadable
from modalities.medical import pixels
from modalities.medical.headers import look, quiet

MOST = 2_000_000_000


@dataclass(frozen=True)
class Fate:
    """What became of one file."""

    name: str
    outcome: str
    reason: str
    seconds: float
    equal: bool = True


def every_file() -> Iterator[tuple[str, Path]]:
    """(package and place in it, path)."""
    for package, folder in (("pydicom", "data"), ("data_store", "data")):
        root = Path(str(files(package))) / folder
        for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")):
            yield f"{package}/{path.relative_to(root)}", path


def fate(name: str, path: Path) -> Fate:
    """Read a file as the plugin does."""
    start = time.perf_counter()
    header = look(str(path))
    if isinstance(header, str):
        return Fate(name, "passed over", header, time.perf_counter() - start)
    try:
        dataset = pixels.load(str(path))
        stored = pixels.frames(dataset, MOST)
        values = pixels.true_values(stored, dataset) if stored.ndim == 3 else stored
    except Unreadable as reason:
        return Fate(name, "quarantined", str(reason), time.perf_counter() - start)
    seconds = time.perf_counter() - start
    reference = _by_pydicom(path, dataset.file_meta.TransferSyntaxUID)
    equal = np.array_equal(values, reference.reshape(values.shape))
    syntax, photometric = dataset.file_meta.TransferSyntaxUID.name, dataset.PhotometricInterpretation
    kind = f"{values.dtype} {'x'.join(map(str, values.shape))}, {photometric}, {syntax}"
    return Fate(name, "read", kind, seconds, equal)


def _by_pydicom(path: Path, syntax: str) -> np.ndarray:
    with quiet():
        dataset = pydicom.dcmread(path, force=True)
        if getattr(dataset, "file_meta", None) is None:
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.setdefault("TransferSyntaxUID", syntax)
        stored = dataset.pixel_array
        if dataset.SamplesPerPixel > 1:
            return stored
        # pydicom does not look into what enhanced objects say of their frames.
        shared = list(dataset.get("SharedFunctionalGroupsSequence", []))
        for frame, group in enumerate(dataset.get("PerFrameFunctionalGroupsSequence", [])):
            for line in next((g.PixelValueTransformationSequence for g in (group, *shared) if _has_line(g)), ()):
                stored = stored.astype(np.float64)
                stored[frame] = stored[frame] * line.RescaleSlope + line.RescaleIntercept
        return apply_modality_lut(stored, dataset)


def _has_line(group: pydicom.Dataset) -> bool:
    return "PixelValueTransformationSequence" in group


def main() -> int:
    """Print the table; 1 where a value differs."""
    fates = [fate(name, path) for name, path in every_file()]
    for one in fates:
        print(f"{one.name:64s} {one.outcome:12s} {one.reason}{'' if one.equal else '   DIFFERS FROM PYDICOM'}")
    print(f"\n{len(fates)} files: " + ", ".join(f"{n} {what}" for what, n in Counter(f.outcome for f in fates).items()))
    slowest = max(fates, key=lambda f: f.seconds)
    print(
        f"slowest: {slowest.name}, {slowest.seconds:.1f} s; differing from pydicom: {sum(not f.equal for f in fates)}"
    )
    return int(any(not f.equal for f in fates))


if __name__ == "__main__":
    sys.exit(main())
