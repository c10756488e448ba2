"""Images and masks that a user gives."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import random_images
from torch import Tensor

from ggcn import image_grid
from ggcn.applications import user_images
from ggcn.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of 32 x 40 pixels."""
    path = tmp_path / "images"
    path.mkdir()
    for number, tile in enumerate(image_grid.to_bytes(random_images(6, 40))):
        Image.fromarray(tile[:32]).save(path / f"{number}.png")
    return path


def test_masks_are_named_or_black_and_white_files(tmp_path: Path) -> None:
    assert (~user_images.mask("centre", 16)).sum() == 64
    assert not user_images.mask("left", 16)[:, :8].any()
    page = Image.new("L", (64, 64), 0)
    page.putpixel((63, 0), 255)
    page.save(tmp_path / "mask.png")
    known = user_images.mask(str(tmp_path / "mask.png"), 16)
    assert not known[0, 15]
    assert known.sum() == 255
    for name, image in (("black", Image.new("L", (8, 8), 0)), ("white", Image.new("L", (8, 8), 255))):
        image.save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match="has nothing"):
            user_images.mask(str(tmp_path / f"{name}.png"), 4)
    Image.new("L", (8, 9)).save(tmp_path / "oblong.png")
    with pytest.raises(UserError, match="must be square"):
        user_images.mask(str(tmp_path / "oblong.png"), 4)
    with pytest.raises(UserError, match="say centre, left or a PNG file"):
        user_images.mask("center", 4)


def test_masks_are_read_as_other_images_are(tmp_path: Path) -> None:
    def known(page: Image.Image, name: str, **how: object) -> Tensor:
        page.save(tmp_path / name, **how)
        return user_images.mask(str(tmp_path / name), 8)

    hole = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 8, 2))  # cut out, not painted
    assert known(hole, "hole.png").equal(torch.arange(8).ge(2)[:, None].expand(8, 8))
    dark = np.full((8, 8), 1000, np.uint16)  # of 65535
    dark[:, 6:] = 60000
    assert known(Image.fromarray(dark), "deep.png").equal(torch.arange(8).lt(6)[None].expand(8, 8))
    turned = Image.new("L", (8, 8), 0)
    turned.paste(255, (0, 0, 8, 2))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert known(turned, "turned.png", exif=exif).equal(torch.arange(8).lt(6)[:, None].expand(8, 8))


def test_a_mask_that_is_too_large_or_not_an_image_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("not an image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, reason in (("large.png", "exceeds limit"), ("text.png", "not an image")):
        with pytest.raises(UserError, match=f"{name} is not an image .*{reason}"):
            user_images.mask(str(tmp_path / name), 8)


def test_an_image_may_be_in_a_parent_folder_or_have_no_ending(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "below").mkdir()
    (folder / ".hidden").mkdir()
    data = (folder / "1.png").read_bytes()
    (folder / "plain").write_bytes(data)
    (folder / ".hidden/1.png").write_bytes(data)
    monkeypatch.chdir(folder / "below")
    expected = user_images.images(str(folder / "1.png"), 16)[1]
    for path in ("../1.png", "../plain", "../.hidden/1.png"):
        assert user_images.images(path, 16)[1].equal(expected)
    (folder / "plain").write_text("text")
    with pytest.raises(UserError, match=r"plain cannot be read \(not an image"):
        user_images.images("../plain", 16)


def test_an_image_may_be_named_by_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".hidden").mkdir()
    monkeypatch.chdir(folder / ".hidden")
    for path in ("../2.png", "./../2.png", str(folder / ".hidden" / ".." / "2.png")):
        assert user_images.images(path, 16)[0] == ["2.png"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is a named pipe"):
        user_images.images(str(tmp_path / "pipe.png"), 16)
    with pytest.raises(UserError, match="is not an image"):
        user_images.mask(str(tmp_path / "pipe.png"), 4)


def test_images_are_squares_of_the_models_size_by_name(folder: Path) -> None:
    names, images = user_images.images(str(folder), 16, 4)
    assert names == ["0.png", "1.png", "2.png", "3.png"]
    assert images.shape == (4, 3, 16, 16)
    assert images.min() >= -1
    assert images.max() <= 1
    alone = user_images.images(str(folder / "2.png"), 16)
    assert alone[0] == ["2.png"]
    assert torch.equal(alone[1][0], images[2])
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:100])
    with pytest.raises(UserError, match=r"3\.png cannot be read .*; fix it or leave it out"):
        user_images.images(str(folder), 16)
