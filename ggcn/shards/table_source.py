"""The images in a Parquet or Arrow file: one row each, their encoded bytes in a column, as Hugging Face stores them.

Only one batch of rows is in memory at a time: rows of one group (of a Parquet file's row group, or of a record batch)
are read in their order.
"""

import bisect
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ggcn import files
from ggcn.errors import UserError
from ggcn.shards.entry import Entry, size_and_stamp

ENDINGS = (".parquet", ".arrow", ".feather")
NAMES = (
    "image",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "image.bytes",
    "bytes",
    "photo",
    "picture",
)
"""names of columns in which an image is looked for first, in this order"""
BATCH_ROWS = 16
"""rows of a Parquet file in memory at a time"""
MAX_STREAM_BYTES = 64 << 20
"""memory that opening an Arrow stream may take"""
INSTALL = "needs pyarrow; run `pip install 'ggcn[parquet]'` (in a checkout `pip install -e '.[parquet]'`)"


def list_table(path: str, column: str = "") -> Iterator[Entry]:
    """One entry for each row; `column`: see `Table`. Raises UserError for a damaged file, or one without images."""
    table, (_, stamp) = open_table(path, column, os.getpid()), size_and_stamp(path)
    row, marked = 0, stamp and (*stamp, *table.column.encode())
    for number, rows in enumerate(table.group_rows):
        group = f"{os.path.basename(path)}:{number}"
        for offset in range(row, row + rows):
            yield Entry(f"{offset:09d}", table.column, -1, offset, (), marked, "table", group=group)
        row += rows


def read_table(path: str, entry: Entry) -> bytes:
    """The encoded image of a row. Raises ValueError if it has none."""
    value = open_table(path, entry.path, os.getpid()).value(entry.offset, entry.path)
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes) and data:
        return data
    if isinstance(value, dict) and value.get("path"):
        raise ValueError("the row has a path instead of an image; save the table with its images embedded")
    raise ValueError("the row has no image")


def annotate_table(path: str, entry: Entry) -> dict[str, Any]:
    """The other columns of a row; a class label also by its name, where the table declares names."""
    table = open_table(path, entry.path, os.getpid())
    values = {name: table.value(entry.offset, name) for name in table.others}
    for name, classes in table.class_names.items():
        label = values.get(name)
        if isinstance(label, int) and 0 <= label < len(classes):
            values[f"{name}_name"] = classes[label]
    return values


@functools.lru_cache(maxsize=4)
def open_table(path: str, column: str, process: int) -> "Table":
    """The table opened in this process. Raises UserError, see `Table`."""
    return Table(path, column)


class Table:
    """The rows of a file, read batch by batch."""

    def __init__(self, path: str, column: str = "") -> None:
        """`column`: the one that holds the images; empty: found by its name or type.

        Raises UserError when pyarrow is absent, when the file is damaged, or when no column is one of images.
        """
        try:
            import pyarrow as pa
        except ImportError:
            raise UserError(f"{path} {INSTALL}") from None
        try:
            self._source = _open(path)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            raise UserError(f"{path} is damaged or no table ({_first_line(error)}); restore it") from None
        schema = self._source.schema
        self.column = column if column in schema.names else _image_column(path, schema, column)
        self.others = [field.name for field in schema if field.name != self.column and _is_plain(field.type)]
        self.class_names = _class_names(schema.metadata or {})
        self.group_rows: Sequence[int] = self._source.group_rows
        self._starts = [0]
        for rows in self.group_rows:
            self._starts.append(self._starts[-1] + rows)
        self._group, self._first, self._rows = -1, 0, 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())
        self._unreadable: dict[int, int] = {}

    def value(self, row: int, column: str) -> Any:
        """The value in a row and column, in Python's types."""
        self._seek(row)
        return self._batch.column(column)[row - self._first].as_py()

    def _seek(self, row: int) -> None:
        """Reads batches until the current one has the row; from the beginning of its group, if that is necessary."""
        group = bisect.bisect_right(self._starts, row) - 1
        if row >= self._unreadable.get(group, row + 1):
            raise ValueError("its part of the table is damaged")
        if group != self._group or row < self._first:
            self._batches = self._source.batches(group, [self.column, *self.others])
            self._group, self._first, self._rows = group, self._starts[group], 0
        try:
            while row >= self._first + self._rows:
                self._first += self._rows
                self._batch = next(self._batches)
                self._rows = self._batch.num_rows
        except Exception as error:
            self._group, self._unreadable[group] = -1, self._first
            raise ValueError(f"its part of the table is damaged ({_first_line(error)})") from None


class _Parquet:
    """A Parquet file by its row groups."""

    def __init__(self, path: str) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.group_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def batches(self, group: int, columns: list[str]) -> Iterator[Any]:
        """The rows of a group, BATCH_ROWS at a time."""
        return self._file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


class _ArrowFile:
    """An Arrow (or Feather) file by its record batches."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self._file = pa.ipc.open_file(pa.memory_map(path))
        self.schema = self._file.schema
        batches = range(self._file.num_record_batches)
        self.group_rows = [self._file.get_batch(batch).num_rows for batch in batches]

    def batches(self, group: int, columns: list[str]) -> Iterator[Any]:
        """The rows of a record batch."""
        yield _validated(self._file.get_batch(group), columns)


class _ArrowStream:
    """An Arrow stream, as the `datasets` library stores it on disk: its batches stay where they are in the file."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        reader, before = pa.ipc.open_stream(pa.memory_map(path)), pa.total_allocated_bytes()
        self.schema, self._batches = reader.schema, []
        for batch in reader:
            self._batches.append(batch)
            if pa.total_allocated_bytes() - before > MAX_STREAM_BYTES:
                raise UserError(
                    f"{path} is a compressed Arrow stream; save it as Parquet, or without compression"
                )
        self.group_rows = [batch.num_rows for batch in self._batches]

    def batches(self, group: int, columns: list[str]) -> Iterator[Any]:
        """The rows of a record batch."""
        yield _validated(self._batches[group], columns)


def _validated(batch: Any, columns: list[str]) -> Any:
    """Columns of a batch. Raises pyarrow's error where a damaged one would lead outside of its memory."""
    chosen = batch.select(columns)
    chosen.validate(full=True)
    return chosen


def _open(path: str) -> _Parquet | _ArrowFile | _ArrowStream:
    if path.endswith(".parquet"):
        return _Parquet(path)
    with files.open_regular(path) as file:
        return _ArrowFile(path) if file.read(6) == b"ARROW1" else _ArrowStream(path)


def _image_column(path: str, schema: Any, wanted: str) -> str:
    """The column that holds the images. Raises UserError if there is none, or several without a usual name."""
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    usual = [name for name in NAMES if name in candidates]
    if not wanted and (usual or len(candidates) == 1):
        return (usual or candidates)[0]
    columns = ", ".join(f"{field.name} ({field.type})"[:60] for field in schema)
    missing = f"has no column {wanted}" if wanted else "has no column that is known to hold images"
    raise UserError(f"{path} {missing}; name one with --column, of {columns:.500}")


def _holds_bytes(kind: Any) -> bool:
    """Whether a column's type is that of encoded images: bytes, or Hugging Face's struct of bytes and path."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_plain(kind: Any) -> bool:
    """Whether values of a column's type can be kept as JSON: numbers, text, and lists and structs of them."""
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of classes by column, as Hugging Face keeps them in a table's metadata; none if there are no valid ones."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in found.items() if isinstance(names, list)}


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
