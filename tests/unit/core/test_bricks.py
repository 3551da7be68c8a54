"""Arrays in bricks: any box comes back as it was, and only what it touches is decompressed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import bricks
from core.data.codecs import decode
from core.modality import Record

DTYPES = ("uint8", "int16", "float32")


def some(shape, dtype="int16", seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 300, shape)).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_box_is_the_array_s_own(data):
    axes = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.lists(st.integers(1, 14), min_size=axes, max_size=axes)))
    array = some(shape, data.draw(st.sampled_from(DTYPES)))
    payload = bricks.Bricks(
        bricks.encode(array, data.draw(st.integers(1, 8)), data.draw(st.sampled_from(["zstd", "lz4", "raw"])))
    )
    corner = [data.draw(st.integers(-5, n + 3)) for n in shape]
    size = [data.draw(st.integers(1, 12)) for _ in shape]
    around = np.pad(array, [(20, 20)] * axes, constant_values=7)
    expected = around[tuple(slice(c + 20, c + 20 + s) for c, s in zip(corner, size, strict=True))]
    np.testing.assert_array_equal(payload.box(corner, size, fill=7), expected)


def test_a_mask_stands_beside_its_array():
    array, mask = some((20, 17, 9)), some((20, 17, 9), "uint8", seed=1)
    payload = bricks.Bricks(bricks.encode(array, 8, mask=mask))
    assert payload.masked
    np.testing.assert_array_equal(payload.whole(), array)
    np.testing.assert_array_equal(payload.box((3, 2, 1), (9, 9, 5), mask=True), mask[3:12, 2:11, 1:6])
    with pytest.raises(ValueError, match="shape"):
        bricks.encode(array, 8, mask=mask[1:])


def test_only_the_bricks_of_a_box_are_decompressed():
    array = some((64, 64, 64))
    data = bytearray(bricks.encode(array, 16, "raw"))
    data[-(16**3) * 2 :] = b"\xff" * (16**3 * 2)  # The last brick is spoilt; a box without a part in it does not care.
    payload = bricks.Bricks(bytes(data))
    np.testing.assert_array_equal(payload.box((0, 0, 0), (48, 48, 48)), array[:48, :48, :48])
    assert (payload.box((48, 48, 48), (16, 16, 16)) == -1).all()


def test_scans_are_smaller_than_their_values():
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 64)] * 3)).astype(np.float32)
    smooth = (1000 * np.exp(-(grid**2).sum(0))).astype(np.int16)
    assert len(bricks.encode(smooth)) < 0.7 * smooth.nbytes


def test_it_is_a_codec_like_others():
    array = some((5, 6))
    record = Record("k", bricks.encode(array), bricks.CODEC, array.shape, str(array.dtype))
    np.testing.assert_array_equal(decode(record), array)


def test_other_bytes_are_no_bricks():
    with pytest.raises(ValueError, match="no bricks"):
        bricks.Bricks(b"something else entirely")
