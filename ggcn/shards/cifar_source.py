"""The images of CIFAR-10 and CIFAR-100 as their authors ship them: batches of pixels, binary or as Python pickles.

A pickle is a program. Here it may do nothing but arrange numbers and text: see `_Unpickler`.
"""

import functools
import io
import mmap
import os
import pickle
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ggcn import files
from ggcn.errors import UserError
from ggcn.shards.entry import Entry, size_and_stamp

SIDE, PIXELS = 32, 3 * 32 * 32
BINARY = re.compile(r"(data_batch_[1-5]|test_batch|train|test)\.bin")
PICKLED = re.compile(r"data_batch_[1-5]|test_batch|train|test")
CLASS_NAMES = {
    "batches.meta.txt": ["label"],
    "coarse_label_names.txt": ["coarse_label"],
    "fine_label_names.txt": ["fine_label"],
}
"""text files with the names of classes, one a line"""
MAX_BATCH_BYTES = 1 << 30


class Batch(NamedTuple):
    """Where the images of a batch lie in its file, and their labels."""

    offsets: range
    stride: int
    """bytes from one value of an image to the next: 1, or the number of images where an array is stored by columns"""
    labels: dict[str, list[int]]


def is_cifar(path: str) -> bool:
    """Whether a file is one of CIFAR's batches: by its name, and by how it begins or by its length."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        return False
    if BINARY.fullmatch(name):
        size = os.path.getsize(path)
        return size > 0 and any(size % (PIXELS + labels) == 0 for labels in (1, 2))
    if not PICKLED.fullmatch(name):
        return False
    with files.open_regular(path) as file:
        head = file.read(2)
    return len(head) == 2 and head[0] == pickle.PROTO[0] and 2 <= head[1] <= 5


def list_cifar(path: str) -> Iterator[Entry]:
    """One entry for each image of a batch. Raises UserError for a damaged one."""
    _, stamp = size_and_stamp(path)
    batch = read_batch(path)
    names = _class_names(os.path.dirname(path))
    for number, offset in enumerate(batch.offsets):
        annotation: dict[str, Any] = {}
        for key, labels in batch.labels.items():
            annotation[key] = label = labels[number]
            if label < len(names.get(key, [])):
                annotation[f"{key}_name"] = names[key][label]
        pieces = ((batch.stride, PIXELS),)
        yield Entry(f"{number:05d}", "", PIXELS, offset, pieces, stamp, "cifar", annotation=annotation)


def read_cifar(path: str, entry: Entry) -> bytes:
    """An image of a batch as a PPM file. Raises ValueError when the file ends before it."""
    ((stride, _),) = entry.pieces
    with files.open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        planes = content[entry.offset : entry.offset + stride * (PIXELS - 1) + 1 : stride]
    if len(planes) != PIXELS:
        raise ValueError("the batch ends before it")
    pixels = bytearray(PIXELS)
    for channel in range(3):
        pixels[channel::3] = planes[channel * SIDE * SIDE : (channel + 1) * SIDE * SIDE]
    return b"P6 %d %d 255\n" % (SIDE, SIDE) + pixels


def read_batch(path: str) -> Batch:
    """The images and labels of a batch. Raises UserError for a damaged one."""
    size = os.path.getsize(path)
    if size > MAX_BATCH_BYTES:
        raise UserError(f"{path} has {size} bytes, more than a batch of CIFAR; give another SOURCE")
    data = files.read_bytes(path)
    try:
        return _binary(path, data) if path.endswith(".bin") else _pickled(data)
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is no batch of CIFAR ({type(error).__name__}: {error}); restore it"
        ) from None


def _binary(path: str, data: bytes) -> Batch:
    """Records of one label (CIFAR-10), or a coarse and a fine one (CIFAR-100), and the pixels."""
    keys = ["coarse_label", "fine_label"] if os.path.basename(path)[:2] in ("tr", "te") else ["label"]
    keys = ["label"] if os.path.basename(path).startswith("test_batch") else keys
    record = len(keys) + PIXELS
    if len(data) % record:
        raise ValueError(f"{len(data)} bytes are no multiple of {record}")
    labels = {key: list(data[index::record]) for index, key in enumerate(keys)}
    return Batch(range(len(keys), len(data), record), 1, labels)


def _pickled(data: bytes) -> Batch:
    """A dict of labels and an array of pixels, which is found in the file, so that images are read one by one."""
    value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    pixels, by_columns = value[b"data"].content()
    start = data.find(pixels)
    images, rest = divmod(len(pixels), PIXELS)
    if rest or not images or start < 0:
        raise ValueError("its pixels are no rows of 3 x 32 x 32 bytes")
    keys = {b"labels": "label", b"coarse_labels": "coarse_label", b"fine_labels": "fine_label"}
    labels = {name: value[key] for key, name in keys.items() if key in value}
    for each in labels.values():
        if type(each) is not list or len(each) != images or not all(type(n) is int and n >= 0 for n in each):
            raise ValueError("its labels are not one number for each image")
    if by_columns:
        return Batch(range(start, start + images), images, labels)
    return Batch(range(start, start + len(pixels), PIXELS), 1, labels)


@functools.lru_cache(maxsize=1)
def _class_names(folder: str) -> dict[str, list[str]]:
    """Names of the classes by label, from the files next to the batches; none where they are missing or damaged."""
    names: dict[str, list[str]] = {}
    for file, (key,) in CLASS_NAMES.items():
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            names[key] = files.read_text(path).split()
    for file in ("batches.meta", "meta"):
        path = os.path.join(folder, file)
        if os.path.isfile(path) and os.path.getsize(path) < 1 << 20:
            names |= _pickled_names(files.read_bytes(path))
    return names


def _pickled_names(data: bytes) -> dict[str, list[str]]:
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        keys = {b"label_names": "label", b"coarse_label_names": "coarse_label"}
        keys[b"fine_label_names"] = "fine_label"
        return {name: [each.decode() for each in value[key]] for key, name in keys.items() if key in value}
    except MemoryError:
        raise
    except Exception:  # the names are an addition: labels are kept without them
        return {}


class _Array:
    """What a pickle says of an array: its state alone, of which no array is made."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def content(self) -> tuple[bytes, bool]:
        """The bytes of an array of uint8 [n, 3072], and whether they are stored by columns. Raises ValueError for
        any other."""
        _, shape, kind, by_columns, content = self.state
        valid = type(content) is bytes and kind.name in (b"u1", "u1")
        if not valid or len(shape) != 2 or shape[1] != PIXELS or shape[0] * PIXELS != len(content):
            raise ValueError(f"its data is no array of bytes [images, {PIXELS}]")
        return content, bool(by_columns)


class _Type:
    """What a pickle says of an array's type."""

    __slots__ = ("name",)

    def __init__(self, name: Any = b"", *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle._Unpickler):
    """Loads dicts, lists, numbers, text, and arrays as `_Array`; refuses to call or import anything else.

    The implementation in Python is used, since the one in C allocates what a damaged file asks for.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for one of numpy's three names in a pickled array. Raises UnpicklingError for any other."""
        known = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Type}
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in known:
            return known[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as Python 3 writes them in old pickles. Raises ValueError for another encoding."""
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise ValueError("it holds text of another encoding")
    return text.encode("latin1")
