"""tools/sample.py: what each flag writes, and what it refuses."""

import csv
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_model import random_images, tiny_sampler
from torch import Tensor

from ggcn import image_grid
from ggcn.applications import export, user_images
from ggcn.applications.energies import energies
from ggcn.cli import sample
from ggcn.config.compose import to_yaml
from ggcn.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of 32 x 40 pixels."""
    place = tmp_path / "images"
    place.mkdir()
    for number, tile in enumerate(image_grid.to_bytes(random_images(6, 40))):
        Image.fromarray(tile[:32]).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, untrained."""
    sampler, path = tiny_sampler(), tmp_path_factory.mktemp("model") / "tiny.safetensors"
    metadata = {"format": export.FORMAT, "config": to_yaml(sampler.config), "step": "0"}
    save_file(export.weights(sampler), path, metadata)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    """The command in this process, which has loaded everything."""
    device = () if "--device" in argv else ("--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, argv), *device])
    sample.main()


def test_every_application_writes_an_image_or_a_folder(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def size(*argv: object) -> tuple[int, int]:
        out = tmp_path / "out.png"
        command(monkeypatch, model, "--out", out, *argv)
        with Image.open(out) as image:
            return image.size

    assert size("--count", 3, "--steps", "4,5", "--noise", 0.1) == (2 * 65 - 1, 2 * 65 - 1)
    assert size("--trajectory", 3, "--count", 2) == (3 * 65 - 1, 2 * 65 - 1)
    assert size("--interpolate", 4, "--count", 2, "--batch", 4) == (4 * 65 - 1, 2 * 65 - 1)
    capsys.readouterr()
    assert size("--inpaint", folder, "--mask", "left")[1] == 26 + 3 * 68
    assert "PSNR" in capsys.readouterr().out
    assert size("--denoise", folder, "--std", 0.2, "--corrupt", "--batch", 4)[1] == 26 + 3 * 68
    assert "PSNR" in capsys.readouterr().out
    assert size("--denoise", folder / "1.png", "--std", 0.2, "--weight", 1)[1] == 26 + 2 * 68
    command(
        monkeypatch,
        model,
        "--inpaint",
        folder,
        "--mask",
        "centre",
        "--out",
        tmp_path / "filled",
        "--count",
        3,
    )
    assert sorted(path.name for path in (tmp_path / "filled").iterdir()) == [f"{n:06d}.png" for n in range(3)]
    command(monkeypatch, model, "--trajectory", 3, "--count", 2, "--out", tmp_path / "trajectories")
    with Image.open(tmp_path / "trajectories/000001.png") as strip:
        assert strip.size == (3 * 17 - 1, 16)


def test_energies_list_the_lowest_and_the_highest(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "energies.csv"
    command(monkeypatch, model, "--energies", folder, "--out", out, "--batch", 4)
    with out.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "energy_4", "energy_16"]
    values = [float(row[2]) for row in rows]
    assert values == sorted(values)
    names, images = user_images.images(str(folder), 16)
    truth = dict(zip(names, energies(export.load(model), images)[:, 1].tolist(), strict=True))
    assert {row[0]: float(row[2]) for row in rows} == pytest.approx(truth, rel=1e-4, abs=1e-5)
    output = capsys.readouterr().out
    assert output.index(rows[0][0]) < output.index("highest") < output.rindex(rows[-1][0])


def test_energies_of_shards(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    shards = request.getfixturevalue("faces")
    command(monkeypatch, model, "--data", shards, "--count", 20, "--out", tmp_path / "energies.csv")
    assert len((tmp_path / "energies.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--inpaint", "IMAGES"], "--inpaint and --mask go together"),
        (["--mask", "left"], "--inpaint and --mask go together"),
        (["--denoise", "IMAGES"], "--denoise and --std go together"),
        (["--denoise", "IMAGES", "--std", "0"], "--std must be above 0"),
        (["--denoise", "IMAGES", "--std", "nan"], "--std must be above 0"),
        (["--denoise", "IMAGES", "--std", "1e30", "--corrupt"], "--std must be above 0, from 1e-6 to 100"),
        (["--denoise", "IMAGES", "--std", "1e-30"], "--std must be above 0, from 1e-6 to 100"),
        (
            ["--denoise", "IMAGES", "--std", "0.2", "--weight", "inf"],
            "--weight must be at least 0, and finite",
        ),
        (["--inpaint", "IMAGES", "--mask", "nowhere.png"], "there is no --mask nowhere.png"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--device", "mps"], "--device mps cannot be used"),
        (["--corrupt"], "belong to --denoise"),
        (["--trajectory", "1"], "at least 2 images"),
        (["--interpolate", "0"], "at least 2 images"),
        (["--steps", "0"], "--steps must be whole numbers, at least 1"),
        (["--time", "1,1,1"], "--time has 3 entries for 2 grids"),
        (["--energies", "IMAGES", "--out", "x.csv", "--noise", "0.1"], "--energies and --data run none"),
        (["--chain-steps", "8"], "--chain-steps is --steps now"),
        (["--count", "0"], "must be at least 1"),
        (["--energies", "IMAGES"], "must end in .csv"),
        (["--inpaint", "nowhere", "--mask", "left"], "there is no nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(
    model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    sentence: str,
) -> None:
    args = [str(folder) if word == "IMAGES" else word for word in argv]
    with pytest.raises(UserError) as error:
        command(monkeypatch, model, "--out", tmp_path / "x.png", *args)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def diverged(model: Path, tmp_path: Path) -> Path:
    """A model with weights that are not numbers."""
    weights = export.weights(export.load(model))
    name = "energies.grids.1.levels.0.bias"
    config = to_yaml(export.load(model).config)
    path = tmp_path / "diverged.safetensors"
    save_file(
        weights | {name: weights[name] * float("nan")},
        path,
        {"format": export.FORMAT, "config": config, "step": "0"},
    )
    return path


@pytest.mark.parametrize(
    "argv",
    [
        ["--out", "x.png"],
        ["--out", "many"],
        ["--trajectory", "2", "--out", "x.png"],
        ["--interpolate", "2", "--out", "x.png"],
        ["--inpaint", "IMAGES", "--mask", "left", "--out", "x.png"],
        ["--denoise", "IMAGES", "--std", "0.2", "--out", "x.png"],
        ["--energies", "IMAGES", "--out", "x.csv"],
    ],
)
def test_images_that_are_not_finite_are_not_written(
    diverged: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [str(folder) if word == "IMAGES" else word for word in argv]
    with pytest.raises(UserError, match="did not stay finite; take another checkpoint"):
        command(monkeypatch, diverged, *args)
    assert not any((tmp_path / name).exists() for name in ("x.png", "x.csv", "many/000000.png"))


def test_an_output_that_cannot_be_written_is_refused_before_chains_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_chains(*_: object) -> None:
        raise AssertionError("chains ran")

    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sample, "trajectory", no_chains)
    with pytest.raises(IsADirectoryError) as error:
        command(monkeypatch, model, "--out", tmp_path / "folder.png")
    assert error.value.filename == str(tmp_path / "folder.png")
    for out in (tmp_path / "file", tmp_path / "file/x.png", Path("/proc/x.png")):
        with pytest.raises(OSError, match=str(out.parent)):
            command(monkeypatch, model, "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_folder_fills_while_chains_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, trajectory = [], sample.trajectory

    def watched(*args: object) -> Tensor:
        written.append(len(list((tmp_path / "many").glob("*.png"))))
        return trajectory(*args)

    monkeypatch.setattr(sample, "trajectory", watched)
    command(monkeypatch, model, "--count", 10, "--batch", 4, "--out", tmp_path / "many")
    assert written == [0, 4, 8]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [f"{n:06d}.png" for n in range(10)]


@pytest.mark.parametrize(
    ("old", "new"),
    [(["--film", "8"], "--trajectory"), (["--score", "x"], "--energies"), (["--sd=0.2"], "--std")],
)
def test_a_renamed_flag_names_its_new_name(monkeypatch: pytest.MonkeyPatch, old: list[str], new: str) -> None:
    with pytest.raises(UserError) as error:
        command(monkeypatch, "run", *old, "--out", "x.png")
    assert str(error.value) == f"{old[0].split('=')[0]} is {new} now"
