"""Folders and archives of every origin list the same images, and nothing makes a tool wait for ever."""

import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ggcn.errors import UserError
from ggcn.shards import sources

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
NAMES = ["a/été.png", "a/b/plain.PNG", "日本.jpg", "top.bmp"]


def data(name: str) -> bytes:
    """What stands for an image here: sources never look inside."""
    return f"bytes of {unicodedata.normalize('NFC', name)}".encode()


def contents(location: Path) -> dict[str, bytes]:
    """All that a source has: names in their order, and bytes."""
    source = sources.find(str(location))
    return {entry.name: sources.read(source.location, entry) for entry in source.entries}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in folders."""
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data(name))
    return tmp_path / "in"


class Unmarked(zipfile.ZipInfo):
    """A member whose name's bytes are in an encoding that the zip does not say."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("cp437"), 0


def unicode_extra(name: str, raw: bytes) -> bytes:
    """The extra field with a member's name in UTF-8."""
    body = b"\1" + struct.pack("<I", zlib.crc32(raw)) + name.encode()
    return struct.pack("<HH", 0x7075, len(body)) + body


def zipped(path: Path, flavour: str) -> Path:
    """The images as zip tools of several systems pack them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in NAMES:
            if flavour == "windows":
                archive.writestr(zipfile.ZipInfo(name.replace("/", "\\")), data(name))
            elif flavour == "mac":
                archive.writestr(unicodedata.normalize("NFD", name), data(name))
                archive.writestr(f"__MACOSX/{Path(name).parent}/._{Path(name).name}", b"notes")
            elif flavour == "unmarked":
                archive.writestr(Unmarked(name.encode().decode("cp437")), data(name))
            elif flavour == "extra field":
                raw = name.encode("cp437", errors="replace")
                member = Unmarked(raw.decode("cp437"))
                member.extra = unicode_extra(name, raw)
                archive.writestr(member, data(name))
        archive.writestr("a/Thumbs.db", b"thumbnails")
        archive.writestr(".DS_Store", b"")
        archive.writestr("a\\" if flavour == "windows" else "a/", b"")
    return path


@pytest.mark.parametrize("flavour", ["windows", "mac", "unmarked", "extra field"])
def test_zips_of_other_systems_list_the_same_images(folder: Path, tmp_path: Path, flavour: str) -> None:
    packed = zipped(tmp_path / "packed.zip", flavour)
    assert list(contents(packed).items()) == list(contents(folder).items())
    assert sources.find(str(packed)).digest() == sources.find(str(folder)).digest()


def test_names_in_an_old_encoding_are_decoded_with_zip_encoding(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed.zip"
    (folder / "a" / "été.png").unlink()  # not in this encoding
    with zipfile.ZipFile(packed, "w") as archive:
        for name in NAMES[1:]:
            archive.writestr(Unmarked(name.encode("cp932").decode("cp437")), data(name))
    assert sources.find(str(packed), "cp932").digest() == sources.find(str(folder)).digest()
    assert contents(packed).keys() != contents(folder).keys()
    assert sources.has_old_names(str(packed))
    assert not sources.has_old_names(str(zipped(tmp_path / "other.zip", "unmarked")))
    with pytest.raises(UserError, match="--zip-encoding nonsense"):
        sources.find(str(packed), "nonsense")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "/"])
def test_tars_of_other_systems_list_the_same_images(
    folder: Path, tmp_path: Path, form: int, prefix: str
) -> None:
    with tarfile.open(tmp_path / "packed.tar", "w", format=form) as tar:
        for name in NAMES:
            for stored, body in ((name, data(name)), (f"{Path(name).parent}/._{Path(name).name}", b"notes")):
                member = tarfile.TarInfo(prefix + unicodedata.normalize("NFD", stored))
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    assert list(contents(tmp_path / "packed.tar").items()) == list(contents(folder).items())


def test_a_folder_from_a_mac_lists_the_same_images(folder: Path, tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / "mac" / unicodedata.normalize("NFD", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data(name))
        path.with_name("._" + path.name).write_bytes(b"notes")
    assert list(contents(tmp_path / "mac").items()) == list(contents(folder).items())


def test_two_files_whose_names_look_the_same_are_both_kept(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "é.png")).write_text(form)
    assert sorted(contents(tmp_path).values()) == [b"NFC", b"NFD"]
    assert contents(tmp_path)["é.png"] == b"NFC"


def test_links_inside_a_tar_are_followed(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "top.bmp", folder / "a" / "hard.bmp")
    (folder / "a" / "soft.bmp").symlink_to("../top.bmp")
    (folder / "a" / "again.bmp").symlink_to("soft.bmp")
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(folder, ".")
        tar.add(folder / "a" / "soft.bmp", "circle.png")
    assert contents(folder) == {
        name: body for name, body in contents_that_are_readable(tmp_path / "packed.tar").items()
    }


def contents_that_are_readable(location: Path) -> dict[str, bytes]:
    """`contents` without what leads nowhere."""
    source, results = sources.find(str(location)), {}
    for entry in source.entries:
        if not sources.is_unreadable(sources.content_hash(source.location, entry)):
            results[entry.name] = sources.read(source.location, entry)
    return results


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar program")
def test_a_sparse_file_inside_a_tar_is_complete(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.zeros((700, 700, 3), dtype=np.uint8)
    pixels[300:310] = 77
    Image.fromarray(pixels).save(tmp_path / "in" / "a.bmp")
    subprocess.run(
        ["cp", "--sparse=always", tmp_path / "in" / "a.bmp", tmp_path / "in" / "b.bmp"], check=True
    )
    (tmp_path / "in" / "a.bmp").unlink()
    tar = ["tar", "-cSf", tmp_path / "packed.tar", "-C", tmp_path / "in", "."]
    subprocess.run(tar, check=True)
    assert (tmp_path / "packed.tar").stat().st_size < 700_000
    assert contents(tmp_path / "packed.tar") == contents(tmp_path / "in")


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    packed = zipped(tmp_path / "packed.zip", "mac")
    raw = bytearray(packed.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        raw[raw.index(mark) + at] |= 1
    packed.write_bytes(raw)
    source = sources.find(str(packed))
    results = [sources.content_hash(source.location, entry) for entry in source.entries]
    assert [text for text in results if "encrypted; unpack" in text] == [results[1]]


def test_a_zip_with_a_damaged_directory_is_named(tmp_path: Path) -> None:
    packed = zipped(tmp_path / "packed.zip", "mac")
    raw = bytearray(packed.read_bytes())
    raw[raw.index(b"PK\1\2")] = 0
    packed.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        sources.find(str(packed))


def test_a_special_file_is_listed_and_never_blocks(tmp_path: Path) -> None:
    images = tmp_path / "in"
    (images / "folder.png").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(images / "folder.png" / "a.png")
    os.mkfifo(images / "pipe.png")
    (images / "device.png").symlink_to("/dev/zero")
    (images / "circle.png").symlink_to("circle.png")
    (images / "gone.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(images / "socket.png"))
        command = [sys.executable, TOOL, images, tmp_path / "out", "--size", "8", "--crop", "grid"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "5 images could not be used" in result.stdout
    for line in (
        "pipe.png: a named pipe, not a file",
        "device.png: a device, not a file",
        "socket.png: a socket, not a file",
        "circle.png: Too many levels of symbolic links",
        "gone.png: No such file or directory",
    ):
        assert line in result.stdout


@pytest.mark.parametrize("what", ["a named pipe", "a device"])
def test_a_source_that_never_ends_is_refused(tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    location = tmp_path / "pipe" if what == "a named pipe" else "/dev/zero"
    command = [sys.executable, TOOL, location, tmp_path / "out", "--size", "8"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert f"{location} is {what}" in result.stderr
    assert result.stderr.count("\n") == 1
