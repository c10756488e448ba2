"""The command: names of images, its summary, and wrong arguments."""

import os
import shutil
from pathlib import Path

import pytest
from builds import draw, make, noise, start, stored

from ggcn.data import manifest_file, verification
from ggcn.errors import UserError


def test_the_manifest_matches_the_shards(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "out", "--size", 16, "--shard-samples", 7)
    result = manifest_file.load(tmp_path / "out")
    assert (result.size, result.channels, result.extension) == (16, 3, "png")
    assert result.counts.tolist() == [7, 7, 7, 7, 7, 5]
    assert result.samples == 40
    assert result.bytes == sum((tmp_path / "out" / shard.name).stat().st_size for shard in result.shards)
    assert result.options["shuffle_seed"] == 0
    verification.check_files(result, full=True)


def test_other_files_are_skipped_and_links_followed_once(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "README.txt").write_text("about")
    (image_folder / "cats" / "._0.png").write_text("what some systems leave behind")
    (image_folder / "again").symlink_to(image_folder)
    draw(tmp_path / "far" / "far.png", noise(77)).parent.rename(tmp_path / "linked")
    (image_folder / "elsewhere").symlink_to(tmp_path / "linked")
    make(image_folder, tmp_path / "out", "--size", 16)
    names = [name for name, _, _ in stored(tmp_path / "out")]
    assert len(names) == len(set(names)) == 41
    assert "elsewhere/far.png" in names
    assert "2 other files" in capsys.readouterr().out


def test_names_in_any_encoding(tmp_path: Path) -> None:
    os.makedirs(tmp_path / "in")
    for name in (b"caf\xe9.png", "日本.png".encode()):
        with open(os.fsencode(tmp_path / "in") + b"/" + name, "wb") as file:
            noise(len(name)).save(file, "PNG")
    (tmp_path / "in" / os.fsdecode(b"bad\xe9.png")).write_text("x")
    make(tmp_path / "in", tmp_path / "out", "--size", 8)
    assert {os.fsencode(name) for name, _, _ in stored(tmp_path / "out")} == {
        b"caf\xe9.png",
        "日本.png".encode(),
    }


def test_enlarged_images_are_reported(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(image_folder / "large.png", noise(50, 64, 64))
    make(image_folder, tmp_path / "out", "--size", 64)
    assert "40 samples were enlarged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}", "{out}", "--size", 0], "at least 1 pixel"),
        (["{in}", "{out}", "--size", -4], "at least 1 pixel"),
        (["{in}", "{out}", "--size", "8,0"], "at least 1 pixel"),
        (["{in}", "{out}", "--size", 4, "--workers", 0], "--workers"),
        (["{in}", "{out}", "--size", 4, "--holdout", 1], "holdout"),
        (["{in}", "{out}", "--size", 4, "--quality", 90], "lossless"),
        (["{in}", "{out}", "--size", 4, "--format", "jpg", "--quality", 0], "1 to 100"),
        (["{in}", "{out}", "--size", 4, "--format", "jpg", "--quality", 101], "1 to 100"),
        (["{in}", "{out}", "--size", 4, "--scales", 2], "--crop grid"),
        (["{in}", "{out}", "--size", 4, "--crop", "grid", "--scales", 0], "scale"),
        (["{in}", "{out}", "--size", 4, "--shard-samples", 0], "shard-samples"),
        (["{in}/nowhere", "{out}", "--size", 4], "there is no"),
        (["{empty}", "{out}", "--size", 4], "no images"),
        (["{file}", "{out}", "--size", 4], "neither a folder nor"),
        (["{gz}", "{out}", "--size", 4], "unpack it"),
        (["demo:cats", "{out}", "--size", 4], "demo:faces and demo:scenes"),
        (["{in}", "{file}", "--size", 4], "File exists"),
        (["{in}", "{file}/out", "--size", 4], "Not a directory"),
    ],
)
def test_wrong_arguments_are_explained_in_one_line(
    image_folder: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    places = {
        "in": image_folder,
        "out": tmp_path / "out",
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
    }
    places["gz"] = Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", image_folder))
    places["empty"].mkdir()
    places["file"].write_text("text")
    with pytest.raises(UserError, match=message) as error:
        make(*(str(argument).format(**places) for argument in arguments))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    process = start(tmp_path / "nowhere", tmp_path / "out", "--size", 8)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == ""
    assert errors.startswith("error: there is no ")
    assert errors.count("\n") == 1
