"""Pixels in true units: every file that ships with pydicom beside pydicom's own values, and each kind of image."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut
from pydicom.sequence import Sequence

from core.modality import Item, Unreadable
from modalities.medical import pixels
from modalities.medical.config import MedicalSettings
from modalities.medical.headers import header_of, is_dicom, look
from modalities.medical.reading import read

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import dicom_files as table
import scans

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 50
FLAT = MedicalSettings.model_validate(
    {"size": [8, 8], "patch": [4, 4], "store": {"short_side": None}, "intensity": {"windows": [[0, 4000]]}}
)


def stored(path):
    dataset = pixels.load(str(path))
    return dataset, pixels.frames(dataset, 10**9)


def test_every_file_of_pydicom_is_read_with_its_values_or_has_a_reason():
    fates = [table.fate(name, path) for name, path in table.every_file()]
    assert len(fates) > 250
    assert not [fate.name for fate in fates if not fate.equal]
    assert sum(fate.outcome == "read" for fate in fates) >= 158
    quarantined = {fate.name.rpartition("/")[2]: fate.reason for fate in fates if fate.outcome == "quarantined"}
    assert quarantined.pop("MR_truncated.dcm").startswith("its pixels are cut off")
    assert {name for name, reason in quarantined.items() if "cannot be decoded" in reason} == {
        # pydicom with all its plug-ins reads neither.
        "JPEG-lossy.dcm",
        "JPEG2000-embedded-sequence-delimiter.dcm",
    }
    assert all(
        reason == "there are no pixels in it" or "cannot be decoded" in reason for reason in quarantined.values()
    )
    assert max(fate.seconds for fate in fates) < 60


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_mirrored_within_its_bits(tmp_path, signed):
    values = (RAMP.astype(np.int32) - (1600 if signed else 0)).astype(np.int16 if signed else np.uint16)
    path = scans.write_image(
        tmp_path / "x", values, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, Modality="CR"
    )
    dataset, raw = stored(path)
    np.testing.assert_array_equal(raw[0], values)
    upright = pixels.upright_grey(pixels.true_values(raw, dataset), dataset)
    low, high = (-2048, 2047) if signed else (0, 4095)
    np.testing.assert_array_equal(upright[0], low + high - values.astype(int))


def test_monochrome1_is_mirrored_in_true_units(tmp_path):
    fields = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    path = scans.write_image(tmp_path / "x", RAMP, RescaleSlope=2, RescaleIntercept=-10, **fields)
    dataset, raw = stored(path)
    upright = pixels.upright_grey(pixels.true_values(raw, dataset), dataset)
    np.testing.assert_array_equal(upright[0], (2 * 4095 - 10) + (-10) - (RAMP.astype(int) * 2 - 10))
    squares = (np.arange(64, dtype=np.uint16) ** 2).tobytes()
    table = scans.item(LUTDescriptor=[64, 0, 16], LUTData=squares, ModalityLUTType="US")
    small = np.arange(64, dtype=np.uint16).reshape(8, 8)
    path = scans.write_image(tmp_path / "y", small, ModalityLUTSequence=Sequence([table]), **fields)
    dataset, raw = stored(path)
    upright = pixels.upright_grey(pixels.true_values(raw, dataset), dataset)
    np.testing.assert_array_equal(upright[0], 63 * 63 - small.astype(int) ** 2)


def test_palettes_become_colours_and_brightness():
    path = get_testdata_file("examples_palette.dcm")
    dataset, raw = stored(path)
    colours = pixels.coloured(raw, dataset)
    assert colours.shape == (*raw.shape, 3)
    np.testing.assert_array_equal(colours[0], apply_color_lut(dataset.pixel_array, dataset)[..., :3])
    np.testing.assert_allclose(pixels.luminance(colours)[0], colours[0] @ [0.299, 0.587, 0.114])


def test_ybr_becomes_rgb():
    path = get_testdata_file("SC_ybr_full_422_uncompressed.dcm")
    _, colours = stored(path)
    rgb = pydicom.dcmread(get_testdata_file("SC_rgb_dcmtk_+eb+cr.dcm"))
    assert colours.shape[-1] == 3
    red = colours[0, 5, 50]
    np.testing.assert_allclose(red, rgb.pixel_array[5, 50], atol=3)


def test_slope_and_intercept_keep_whole_numbers_whole(tmp_path):
    path = scans.write_image(tmp_path / "x", RAMP, RescaleSlope=2, RescaleIntercept=-1024)
    dataset, raw = stored(path)
    values = pixels.true_values(raw, dataset)
    assert values.dtype.kind == "i"
    np.testing.assert_array_equal(values[0], RAMP.astype(int) * 2 - 1024)
    path = scans.write_image(tmp_path / "y", RAMP, RescaleSlope=0.5, RescaleIntercept=1)
    dataset, raw = stored(path)
    np.testing.assert_array_equal(pixels.true_values(raw, dataset)[0], RAMP * 0.5 + 1)


def test_frames_of_enhanced_objects_have_slopes_of_their_own(tmp_path):
    groups = [
        scans.item(PixelValueTransformationSequence=Sequence([scans.item(RescaleSlope=k + 1, RescaleIntercept=-k)]))
        for k in range(3)
    ]
    stack = np.stack([RAMP, RAMP, RAMP])
    path = scans.write_image(tmp_path / "x", stack, PerFrameFunctionalGroupsSequence=Sequence(groups))
    dataset, raw = stored(path)
    for k, frame in enumerate(pixels.true_values(raw, dataset)):
        np.testing.assert_array_equal(frame, RAMP.astype(float) * (k + 1) - k)


def test_an_image_becomes_a_record_that_names_nobody(tmp_path):
    path = scans.write_image(tmp_path / "doe.dcm", RAMP, PatientName="Doe^Jane", Modality="DX")
    (record,) = read(Item("k", str(path), target="ill"), FLAT)
    np.testing.assert_array_equal(record_values(record), RAMP)
    assert record.target == "ill"
    assert set(record.meta) == {"modality", "burned_in", "secondary", "least"}
    assert record.meta["modality"] == "DX"


def record_values(record):
    from core.data.codecs import decode

    return decode(record)


def test_frames_are_taken_evenly(tmp_path):
    stack = np.stack([RAMP + k for k in range(9)])
    path = scans.write_image(tmp_path / "cine", stack, Modality="US")
    several = FLAT.model_copy(update={"frames": 3})
    records = read(Item("k", str(path)), several)
    assert [record.key for record in records] == ["k#000", "k#004", "k#008"]
    (middle,) = read(Item("k", str(path)), FLAT)
    np.testing.assert_array_equal(record_values(middle), RAMP + 4)


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"this is no scan at all " * 20, "is not DICOM"),
    "only a head": (b"\0" * 128 + b"DICM", "without pixels"),
    "noise after the head": (b"\0" * 128 + b"DICM" + bytes(range(256)) * 8, "DICOM"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_says_so(tmp_path, kind):
    content, reason = BAD[kind]
    path = tmp_path / "bad.dcm"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        read(Item("k", str(path)), FLAT)


def test_values_of_one_kind_only_are_refused(tmp_path):
    path = scans.write_image(tmp_path / "x", np.full((8, 8), 7, np.uint16))
    with pytest.raises(Unreadable, match="all its values are 7"):
        read(Item("k", str(path)), FLAT)


def test_values_beyond_16_bits_ask_for_another_type(tmp_path):
    path = scans.write_image(tmp_path / "x", (RAMP * 20).astype(np.uint16))
    with pytest.raises(Unreadable, match=r"0 to 63000 do not fit .* data\.store\.values=float32"):
        read(Item("k", str(path)), FLAT)
    wide = FLAT.model_copy(update={"store": FLAT.store.model_copy(update={"values": "float32"})})
    (record,) = read(Item("k", str(path)), wide)
    np.testing.assert_array_equal(record_values(record), RAMP * 20.0)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.75, 0.95])
def test_reasons_quote_nothing_that_stands_in_a_file(tmp_path, kept):
    """Decoders and pydicom quote values; what people read must not."""
    path = scans.write_image(tmp_path / "x", RAMP, PatientName="Planted^Name", RescaleSlope="1")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(Unreadable) as told:
        read(Item("k", str(path)), FLAT)
    assert str(told.value)
    assert "Planted" not in str(told.value)


def test_headers_are_looked_at_without_a_warning(tmp_path):
    path = scans.write_image(tmp_path / "x", RAMP, PatientBirthDate="not a date")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = look(str(path))
    assert not isinstance(header, str)
    assert header.patient == "P1"


def test_files_without_a_preamble_are_found():
    assert is_dicom(get_testdata_file("ExplVR_LitEndNoMeta.dcm"))
    assert is_dicom(get_testdata_file("ExplVR_BigEndNoMeta.dcm"))
    assert not is_dicom(__file__)
    assert not is_dicom("/nowhere/at/all")


def test_objects_without_pixels_are_called_what_they_are():
    names = {"reportsi.dcm": "structured reports", "rtplan.dcm": "radiotherapy plans", "DICOMDIR": "DICOM directories"}
    for name, kind in names.items():
        assert look(get_testdata_file(name)) == kind
    assert header_of(pydicom.Dataset(), "x") == "DICOM objects without pixels"
