"""Images that cannot be used are listed, and the rest is kept."""

import json
import os
import zipfile
from pathlib import Path

import pytest
from builds import draw, make, noise, stored
from PIL import Image

from ggcn.data import manifest, manifest_file
from ggcn.errors import UserError
from ggcn.shards import assembly


def test_unreadable_images_are_listed_and_the_rest_is_kept(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(image_folder / "torn.jpg", noise(1, 300, 300))
    os.truncate(image_folder / "torn.jpg", 5000)
    (image_folder / "text.png").write_text("not an image")
    (image_folder / "empty.gif").touch()
    (image_folder / "gone.png").symlink_to("nowhere")
    draw(image_folder / "floats.tif", Image.new("F", (40, 40), 0.5))
    make(image_folder, tmp_path / "out", "--size", 16, "--shard-samples", 1)

    printed = capsys.readouterr().out
    lines = (tmp_path / "out" / assembly.REJECTED).read_text().splitlines()
    reasons = {line["source"]: line["reason"] for line in map(json.loads, lines)}
    assert set(reasons) == {"torn.jpg", "text.png", "empty.gif", "gone.png", "floats.tif"}
    assert "truncated" in reasons["torn.jpg"]
    assert "not an image" in reasons["text.png"]
    assert "No such file" in reasons["gone.png"]
    assert "floating-point" in reasons["floats.tif"]
    assert "5 images could not be used" in printed
    assert all(f"{name}: {reason}" in printed for name, reason in reasons.items())

    result = manifest_file.load(tmp_path / "out")
    assert (result.samples, result.rejected, len(result.shards)) == (40, 5, 40)  # no empty shard among them
    assert {name for name, _, _ in stored(tmp_path / "out")}.isdisjoint(reasons)
    assert make(image_folder, tmp_path / "out", "--size", 16, "--shard-samples", 1) == 0


def test_a_source_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("not an image")
    with pytest.raises(UserError, match=r"none of the 1 images.*a\.png: not an image"):
        make(tmp_path / "in", tmp_path / "out", "--size", 16)
    assert not (tmp_path / "out" / manifest.NAME).exists()


def test_a_damaged_zip_member_is_one_rejected_image(image_folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "in.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(image_folder.rglob("*.png")):
            archive.write(path, path.relative_to(image_folder))
        place = archive.getinfo("cats/7.png").header_offset
    data = bytearray(packed.read_bytes())
    data[place + 200] ^= 1
    packed.write_bytes(data)
    make(packed, tmp_path / "out", "--size", 16)
    rejected = json.loads((tmp_path / "out" / assembly.REJECTED).read_text())
    assert rejected["source"] == "cats/7.png"
    assert "CRC" in rejected["reason"]
