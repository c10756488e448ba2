"""Damaged files of others: each gives images, a list of those that cannot be read, or one sentence; in time."""

import csv
import json
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import source_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggcn.errors import UserError
from ggcn.shards import sources

MAX_SECONDS = 10


def parquet(folder: Path) -> Path:
    """A table of 20 images in two row groups."""
    writer = pytest.importorskip("pyarrow.parquet")
    writer.write_table(source_files.table(0, 20), folder / "rows.parquet", row_group_size=10)
    return folder / "rows.parquet"


def arrow_file(folder: Path) -> Path:
    """The same as an Arrow file."""
    pa = pytest.importorskip("pyarrow")
    with pa.ipc.new_file(str(folder / "rows.feather"), source_files.table(0, 1).schema) as file:
        file.write_table(source_files.table(0, 20), max_chunksize=7)
    return folder / "rows.feather"


def arrow_stream(folder: Path) -> Path:
    """The same as an Arrow stream."""
    pa = pytest.importorskip("pyarrow")
    with pa.ipc.new_stream(str(folder / "rows.arrow"), source_files.table(0, 1).schema) as file:
        file.write_table(source_files.table(0, 20), max_chunksize=7)
    return folder / "rows.arrow"


def pickled(folder: Path) -> Path:
    """A batch of CIFAR's Python version."""
    source_files.cifar_python(folder / "cifar")
    return folder / "cifar" / "data_batch_1"


def pickled_names(folder: Path) -> Path:
    """The names of CIFAR's classes."""
    source_files.cifar_python(folder / "names")
    return folder / "names" / "batches.meta"


def binary(folder: Path) -> Path:
    """A batch of CIFAR's binary version."""
    source_files.cifar_binary(folder / "binary")
    return folder / "binary" / "data_batch_1.bin"


def tar(folder: Path) -> Path:
    """A tar with captions."""
    source_files.img2dataset(folder / "tars", 1)
    return folder / "tars" / "00000.tar"


def packed(folder: Path) -> Path:
    """The same as a zip."""
    source_files.img2dataset(folder / "more", 1)
    with (
        tarfile.open(folder / "more" / "00000.tar") as archive,
        zipfile.ZipFile(folder / "in.zip", "w") as out,
    ):
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            out.writestr(member.name, file.read())
    return folder / "in.zip"


def urls(folder: Path) -> Path:
    """A list of URLs that nobody serves."""
    with (folder / "list.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [["url", "caption"], *([f"nowhere://host/{i}.jpg", "a"] for i in range(9))]
        )
    return folder / "list.csv"


def labels(folder: Path) -> Path:
    """StyleGAN's labels next to an image."""
    (folder / "labels").mkdir()
    (folder / "labels" / "a.png").write_bytes(source_files.encoded(1))
    path = folder / "labels" / "dataset.json"
    path.write_text(json.dumps({"labels": [["a.png", 3], ["b.png", 4]]}), encoding="utf-8")
    return path


KINDS: list[Callable[[Path], Path]] = [parquet, arrow_file, arrow_stream, pickled, pickled_names, binary]
KINDS += [tar, packed, urls, labels]
WHOLE_FOLDER = (pickled, pickled_names, binary, labels)


def damaged(data: bytes, damages: list[tuple[str, float, bytes]]) -> bytes:
    """The bytes with some overwritten, cut out, inserted or cut off, at places given as shares of their length."""
    for how, share, other in damages:
        at = int(share * len(data))
        rest = {"overwrite": len(other), "insert": 0, "cut out": 40, "cut off": len(data)}[how]
        data = data[:at] + (b"" if how.startswith("cut") else other) + data[at + rest :]
    return data


DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "overwrite", "insert", "cut out", "cut off"]),
        st.one_of(st.floats(0, 1), st.floats(0, 0.01), st.floats(0.97, 1)),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def read_all(location: Path) -> int:
    """Reads all images and annotations as a build does; how many there are. Raises UserError and OSError."""
    source = sources.find(str(location))
    for entry in source.entries:
        text = sources.content_hash(source.location, entry)
        assert len(text) == 64 or sources.is_unreadable(text) or text.startswith(sources.GONE)
        if len(text) == 64:
            json.dumps(sources.annotation(source.location, entry), allow_nan=False)
    return len(source.entries)


def check(make_file: Callable[[Path], Path], folder: Path, examples: int) -> None:
    """Damages a file in many ways. Fails for an error that is no sentence, and for one that takes too long."""
    path = make_file(folder)
    intact = path.read_bytes()
    location = path.parent if make_file in WHOLE_FOLDER else path
    assert read_all(location) > 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGES)
    def attempt(damages: list[tuple[str, float, bytes]]) -> None:
        path.unlink()  # libraries may have the old one mapped into memory
        path.write_bytes(damaged(intact, damages))
        start, sentence = time.process_time(), ""
        try:
            read_all(location)
        except (UserError, OSError) as error:
            sentence = str(error)
        assert "\n" not in sentence
        assert time.process_time() - start < MAX_SECONDS

    attempt()


@pytest.mark.parametrize("make_file", KINDS)
def test_damaged_files_are_one_sentence_or_listed(make_file: Callable[[Path], Path], tmp_path: Path) -> None:
    check(make_file, tmp_path, 25)


@pytest.mark.slow
@pytest.mark.parametrize("make_file", KINDS)
def test_many_damaged_files(make_file: Callable[[Path], Path], tmp_path: Path) -> None:
    check(make_file, tmp_path, 1000)
    shutil.rmtree(tmp_path)
