"""Columns of Arrow files, read value by value without pyarrow's scalars: random access in well under a microsecond."""

import pyarrow as pa


class Values:
    """A string or binary column as views of its buffers: ``values[i]`` is a memoryview, nothing is copied."""

    def __init__(self, column: pa.Array) -> None:
        large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
        _, offsets, data = column.buffers()
        self._offsets = _view(offsets).cast("q" if large else "i")[column.offset :]
        self._data = _view(data)

    def __getitem__(self, row: int) -> memoryview:
        return self._data[self._offsets[row] : self._offsets[row + 1]]

    def text(self, row: int) -> str:
        """The value as text."""
        return str(self[row], "utf-8")


class Lists:
    """A column of lists of int32."""

    def __init__(self, column: pa.Array) -> None:
        offsets, values = column.buffers()[1], column.values
        self._offsets = _view(offsets).cast("i")[column.offset :]
        self._values = _view(values.buffers()[1]).cast("i")[values.offset :]

    def __getitem__(self, row: int) -> tuple[int, ...]:
        return tuple(self._values[self._offsets[row] : self._offsets[row + 1]])


class Maybe:
    """A string column in which values may be missing."""

    def __init__(self, column: pa.Array) -> None:
        self._values = Values(column)
        self._there = column.is_valid().to_numpy(zero_copy_only=False)

    def text(self, row: int) -> str | None:
        """The value as text, or None."""
        return self._values.text(row) if self._there[row] else None


def _view(buffer: pa.Buffer | None) -> memoryview:
    """Bytes of a buffer; columns without rows may have none."""
    return memoryview(buffer).cast("B") if buffer is not None else memoryview(b"")
