"""What an energy is good for: in-painting, denoising, films, walks through z, scores. Closed forms first."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ggcn import image_grid
from ggcn.applications import export, user_images
from ggcn.applications import inpainting as tasks
from ggcn.cli import sample
from ggcn.config.compose import compose, to_yaml
from ggcn.config.grids import Grid
from ggcn.errors import UserError
from ggcn.evaluation import samples
from ggcn.evaluation.images import to_bytes, to_floats
from ggcn.models import build
from ggcn.sampling.noise import Noise
from ggcn.sampling.sampler import Sampler

CPU = torch.device("cpu")
PRECISION = torch.tensor(
    [[2.0, 0.6, -0.3, 0.1], [0.6, 1.5, 0.4, 0.0], [-0.3, 0.4, 1.0, 0.2], [0.1, 0.0, 0.2, 1.2]]
)
MEAN = torch.tensor([0.3, -0.2, 0.5, 0.0])
KNOWN = torch.tensor([[True, False], [False, True]])


def gaussian(x: Tensor) -> Tensor:
    """(x - MEAN)' PRECISION (x - MEAN) / 2 of images [n, 1, 2, 2]."""
    off = x.flatten(1) - MEAN
    return ((off @ PRECISION) * off).sum(1) / 2


def tiny(*words: str) -> Sampler:
    """An untrained model, 4 and 16 px."""
    config = compose([*TINY, "engine=plain", "engine.precision=fp32", *words])
    return Sampler(config, *build(config))


def faces(count: int, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_inpainting_samples_the_conditional_law_of_a_gaussian(temperature: float) -> None:
    chains = 20_000 if temperature else 2
    known, free = torch.tensor([0, 3]), torch.tensor([1, 2])
    y = torch.tensor([1.5, 0.0, 0.0, -1.0]).view(1, 1, 2, 2).expand(chains, 1, 2, 2)
    grid = Grid(size=2, steps=300, step_size=0.03, temperature=temperature, gamma=0.0)
    x = tasks.pinned(
        gaussian, torch.zeros_like(y), tasks.Known(y, KNOWN), grid, Noise([("n",)], CPU)
    ).flatten(1)
    assert torch.equal(x[:, known], y.flatten(1)[:, known])
    inner = PRECISION[free][:, free]
    pull = PRECISION[free][:, known] @ (torch.tensor([1.5, -1.0]) - MEAN[known])
    mean = MEAN[free] - torch.linalg.solve(inner, pull)
    assert torch.allclose(x[:, free].mean(0), mean, atol=0.03 if temperature else 5e-3)
    if temperature:
        assert torch.allclose(torch.cov(x[:, free].T), torch.linalg.inv(inner), atol=0.04)


@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_denoising_under_a_gaussian_is_the_wiener_filter(weight: float) -> None:
    y, sd = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), 0.7
    weights = torch.full((5,), weight)
    x = tasks.descend(gaussian, torch.zeros_like(y), y, sd, weights, steps=400, step_size=0.4).flatten(1)
    both = weight * PRECISION + torch.eye(4) / sd**2
    wiener = torch.linalg.solve(both, (weight * PRECISION @ MEAN + y.flatten(1) / sd**2).T).T
    assert torch.allclose(x, wiener, atol=1e-4)


def test_without_a_weight_a_picture_goes_as_far_to_the_noisy_one_as_its_start_deserves() -> None:
    torch.manual_seed(0)
    truth, sd, off = torch.zeros(3, 3, 64, 64), 0.2, torch.tensor([0.1, 0.2, 0.4])[:, None, None, None]
    y, start = truth + sd * torch.randn(truth.shape), truth + off * torch.randn(truth.shape)
    weight = tasks.trust(start, y, sd, steps=8, step_size=5.0)
    x = tasks.descend(lambda x: 0 * x.flatten(1).sum(1), start, y, sd, weight, 8, 5.0)
    share = off**2 / (off**2 + sd**2)
    assert torch.allclose(x, torch.lerp(start, y, share), atol=0.05)
    best = (off**2 * sd**2 / (off**2 + sd**2)).flatten()  # the variance that is left, below either one's
    assert torch.allclose(x.square().flatten(1).mean(1), best, rtol=0.1)


def test_coarse_pixels_are_known_where_all_their_fine_ones_are() -> None:
    images, mask = faces(2, 8), torch.ones(8, 8, dtype=torch.bool)
    mask[3, 3] = False
    coarse, fine = tasks.known(images, mask, [4, 8], Noise([("n",)], CPU), sd=0.0)
    assert torch.equal(fine.mask, mask)
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[1, 1] = False
    assert torch.equal(coarse.mask, expected)
    assert torch.allclose(coarse.pixels[:, :, 0, 3], images[:, :, :2, 6:].mean((2, 3)))
    noisy = tasks.known(images, mask, [8], Noise([("n",)], CPU), sd=0.5)[0]
    assert (noisy.pixels - images).std().item() == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model=gcn", "model.grids=[16]", "model.replay_buffer.cold_start_factor=4"],
        ["model=multigrid", "model.grids=[4,16]"],
    ],
)
def test_inpainting_keeps_what_is_known_and_knows_nothing_of_the_batch(words: list[str]) -> None:
    sampler, images = tiny(*words), faces(5)
    mask = user_images.mask("centre", 16)
    whole = tasks.inpaint(sampler, images, mask, 0, seed=1)
    assert torch.equal(whole[:, :, mask], images[:, :, mask])
    assert whole.isfinite().all()
    hidden = torch.where(mask, images, torch.full((), 9.0))
    assert torch.equal(
        tasks.inpaint(sampler, hidden, mask, 0, seed=1), whole
    )  # what is masked is not looked at
    part = tasks.inpaint(sampler, images[4:], mask, 4, seed=1)
    assert torch.allclose(part[0], whole[4], atol=1e-3)
    other = tasks.inpaint(sampler, images, mask, 0, seed=2)
    assert not torch.allclose(other[:, :, ~mask], whole[:, :, ~mask], atol=1e-3)


def test_z_is_found_from_half_a_picture() -> None:
    sampler = tiny()
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pixels = sampler.upsamplers.start(0, z)
    fact = tasks.Known(pixels, user_images.mask("left", 4))
    begun = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    found = tasks.fitted(sampler.upsamplers, begun, fact)

    def cost(z: Tensor) -> float:
        with torch.no_grad():
            miss = (sampler.upsamplers.start(0, z) - pixels)[:, :, fact.mask]
        return float(miss.square().sum() / (2 * tasks.FIT_SD**2) + z.square().sum() / 2)

    assert cost(found) < 0.5 * cost(begun)
    assert cost(found) <= cost(z)  # the picture's own z is one that it could have taken
    assert not any(parameter.requires_grad for parameter in sampler.upsamplers.parameters())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model=coopnets", "model.grids=[16]"],
        ["model=wgcn", "model.grids=[16]", "model.replay_buffer.cold_start_factor=4"],
    ],
)
def test_denoising_knows_nothing_of_the_batch(words: list[str]) -> None:
    sampler, images = tiny(*words), faces(5)
    whole = tasks.denoise(sampler, images, 0.2, 0, seed=1)
    assert whole.isfinite().all()
    part = tasks.denoise(sampler, images[3:], 0.2, 3, seed=1)
    assert torch.allclose(part, whole[3:], atol=1e-3)


def test_a_films_last_stage_is_the_picture_and_its_first_the_start() -> None:
    sampler = tiny("model.chain.steps=[3,6]")
    drawn = sampler.draw(0, 5, seed=7)
    stops = tasks.stages(6, 4)
    assert stops == [0, 2, 4, 6]
    film = tasks.film(sampler, range(5), 7, stops)
    assert film.shape == (5, 4, 3, 16, 16)
    assert torch.allclose(film[:, 0], drawn.starts[-1][:5], atol=1e-6)
    assert torch.allclose(film[:, -1], drawn.ends[-1][:5], atol=1e-6)
    assert torch.allclose(tasks.film(sampler, range(4, 5), 7, [6])[0, 0], film[4, -1], atol=1e-5)
    longer = tasks.film(sampler, range(5), 7, [6, 12])
    assert torch.allclose(longer[:, 0], film[:, -1], atol=1e-6)  # it goes on from there
    assert not torch.allclose(longer[:, 1], longer[:, 0], atol=1e-4)


def test_stages_are_even_and_end_at_the_end() -> None:
    assert tasks.stages(8, 3) == [0, 4, 8]
    assert tasks.stages(2, 8) == [0, 1, 2]
    assert tasks.stages(5, 1) == [0, 5]


def test_a_walk_begins_and_ends_at_its_pictures() -> None:
    sampler = tiny("model.chain.temperature=[0]")
    drawn = sampler.draw(0, 6, seed=3).ends[-1]
    walk = tasks.interpolate(sampler, range(1, 3), 3, 5)
    assert walk.shape == (2, 5, 3, 16, 16)
    assert torch.allclose(walk[:, 0], drawn[[2, 4]], atol=1e-5)
    assert torch.allclose(
        walk[:, -1], drawn[[3, 5]], atol=1e-5
    )  # without noise; else all have the first one's
    noisy = tiny()
    first = tasks.interpolate(noisy, range(1), 3, 3)[0, 0]
    assert torch.allclose(first, noisy.draw(0, 1, seed=3).ends[-1][0], atol=1e-5)


def test_a_walk_stays_on_the_sphere() -> None:
    a, b = (
        torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[0.0, 3.0], [2.0, 0.0], [-1.0, -1.0]]),
    )
    middle = tasks.spherical(a, b, 0.5)
    assert torch.allclose(middle[0], torch.tensor([3.0, 3.0]) / 2**0.5)
    assert torch.allclose(middle[1], torch.tensor([1.5, 0.0]))
    assert middle.isfinite().all()
    assert torch.allclose(tasks.spherical(a, b, 0.0), a)
    assert torch.allclose(tasks.spherical(a, b, 1.0), b)


def test_there_is_no_walk_without_z() -> None:
    with pytest.raises(UserError, match="no z to interpolate in gcn, whose chains start from replay_buffer"):
        tasks.interpolate(tiny("model=gcn", "model.grids=[16]"), range(1), 0, 3)


def test_energies_are_the_samplers() -> None:
    sampler, pixels = tiny(), to_bytes(faces(6))
    found = tasks.energies(sampler, to_floats(pixels))
    assert torch.allclose(found[:, -1], samples.energies(sampler, pixels))
    coarse = torch.nn.functional.avg_pool2d(to_floats(pixels), 4)
    with torch.no_grad():
        assert torch.allclose(found[:, 0], sampler.energies.energy(0, coarse, "fp32"))


def test_masks(tmp_path: Path) -> None:
    assert (~user_images.mask("centre", 16)).sum() == 64
    assert not user_images.mask("left", 16)[:, :8].any()
    page = Image.new("L", (64, 64), 0)
    page.putpixel((63, 0), 255)
    page.save(tmp_path / "mask.png")
    known = user_images.mask(str(tmp_path / "mask.png"), 16)
    assert not known[0, 15]
    assert known.sum() == 255
    for name, picture in (("black", Image.new("L", (8, 8), 0)), ("white", Image.new("L", (8, 8), 255))):
        picture.save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match="has nothing"):
            user_images.mask(str(tmp_path / f"{name}.png"), 4)
    Image.new("L", (8, 9)).save(tmp_path / "oblong.png")
    with pytest.raises(UserError, match="must be square"):
        user_images.mask(str(tmp_path / "oblong.png"), 4)
    with pytest.raises(UserError, match="say centre, left or a PNG file"):
        user_images.mask("center", 4)


def test_masks_are_read_as_pictures_are(tmp_path: Path) -> None:
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


def test_a_mask_that_is_too_large_or_no_picture_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, reason in (("large.png", "exceeds limit"), ("text.png", "not an image")):
        with pytest.raises(UserError, match=f"{name} is no picture .*{reason}"):
            user_images.mask(str(tmp_path / name), 8)


def test_a_picture_may_lie_above_or_have_no_ending(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "below").mkdir()
    (folder / ".hidden").mkdir()
    data = (folder / "1.png").read_bytes()
    (folder / "plain").write_bytes(data)
    (folder / ".hidden/1.png").write_bytes(data)
    monkeypatch.chdir(folder / "below")
    expected = user_images.images(str(folder / "1.png"), 16)[1]
    for place in ("../1.png", "../plain", "../.hidden/1.png"):
        assert user_images.images(place, 16)[1].equal(expected)
    (folder / "plain").write_text("text")
    with pytest.raises(UserError, match=r"plain cannot be read \(not an image"):
        user_images.images("../plain", 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of 32 x 40 pixels."""
    place = tmp_path / "images"
    place.mkdir()
    for number, tile in enumerate(image_grid.to_bytes(faces(6, 40))):
        Image.fromarray(tile[:32]).save(place / f"{number}.png")
    return place


def test_an_image_may_be_given_by_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".hidden").mkdir()
    monkeypatch.chdir(folder / ".hidden")
    for place in ("../2.png", "./../2.png", str(folder / ".hidden" / ".." / "2.png")):
        assert user_images.images(place, 16)[0] == ["2.png"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is a named pipe"):
        user_images.images(str(tmp_path / "pipe.png"), 16)
    with pytest.raises(UserError, match="is no picture"):
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
    with pytest.raises(UserError, match=r"3\.png cannot be read .*; mend it or leave it out"):
        user_images.images(str(folder), 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, untrained."""
    sampler, path = tiny(), tmp_path_factory.mktemp("model") / "tiny.safetensors"
    facts = {"format": export.FORMAT, "config": to_yaml(sampler.config), "step": "0"}
    save_file(export.weights(sampler), path, facts)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """The command in this process, which has loaded everything."""
    device = () if "--device" in words else ("--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, words), *device])
    sample.main()


def test_the_command_does_all_of_it(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def size(*words: object) -> tuple[int, int]:
        out = tmp_path / "out.png"
        command(monkeypatch, model, "--out", out, *words)
        with Image.open(out) as picture:
            return picture.size

    assert size("--count", 3, "--chain-steps", 5) == (2 * 65 - 1, 2 * 65 - 1)
    assert size("--film", 3, "--count", 2) == (3 * 65 - 1, 2 * 65 - 1)
    assert size("--interpolate", 4, "--count", 2, "--batch", 4) == (4 * 65 - 1, 2 * 65 - 1)
    capsys.readouterr()
    assert size("--inpaint", folder, "--mask", "left")[1] == 26 + 3 * 68
    assert "PSNR" in capsys.readouterr().out
    assert size("--denoise", folder, "--sd", 0.2, "--corrupt", "--batch", 4)[1] == 26 + 3 * 68
    assert "PSNR" in capsys.readouterr().out
    assert size("--denoise", folder / "1.png", "--sd", 0.2, "--weight", 1)[1] == 26 + 2 * 68
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
    command(monkeypatch, model, "--film", 3, "--count", 2, "--out", tmp_path / "films")
    with Image.open(tmp_path / "films/000001.png") as strip:
        assert strip.size == (3 * 17 - 1, 16)


def test_scores_name_the_lowest_and_the_highest(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "energies.csv"
    command(monkeypatch, model, "--score", folder, "--out", out, "--batch", 4)
    with out.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "energy_4", "energy_16"]
    values = [float(row[2]) for row in rows]
    assert values == sorted(values)
    names, images = user_images.images(str(folder), 16)
    truth = dict(zip(names, tasks.energies(export.load(model), images)[:, 1].tolist(), strict=True))
    assert {row[0]: float(row[2]) for row in rows} == pytest.approx(truth, rel=1e-4, abs=1e-5)
    told = capsys.readouterr().out
    assert told.index(rows[0][0]) < told.index("highest") < told.rindex(rows[-1][0])


def test_shards_are_scored_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    shards = request.getfixturevalue("faces")
    command(monkeypatch, model, "--data", shards, "--count", 20, "--out", tmp_path / "energies.csv")
    assert len((tmp_path / "energies.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--inpaint", "IMAGES"], "--inpaint and --mask go together"),
        (["--mask", "left"], "--inpaint and --mask go together"),
        (["--denoise", "IMAGES"], "--denoise and --sd go together"),
        (["--denoise", "IMAGES", "--sd", "0"], "--sd must be above 0"),
        (["--denoise", "IMAGES", "--sd", "nan"], "--sd must be above 0"),
        (["--denoise", "IMAGES", "--sd", "1e30", "--corrupt"], "--sd must be above 0, from 1e-6 to 100"),
        (["--denoise", "IMAGES", "--sd", "1e-30"], "--sd must be above 0, from 1e-6 to 100"),
        (
            ["--denoise", "IMAGES", "--sd", "0.2", "--weight", "inf"],
            "--weight must be at least 0, and finite",
        ),
        (["--inpaint", "IMAGES", "--mask", "nowhere.png"], "there is no --mask nowhere.png"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--device", "mps"], "--device mps cannot be used"),
        (["--corrupt"], "belong to --denoise"),
        (["--film", "1"], "at least 2 stages"),
        (["--interpolate", "0"], "at least 2 stages"),
        (["--chain-steps", "0"], "must be at least 1"),
        (["--count", "0"], "must be at least 1"),
        (["--score", "IMAGES"], "must end in .csv"),
        (["--inpaint", "nowhere", "--mask", "left"], "there is no nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(
    model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    given_words = [str(folder) if word == "IMAGES" else word for word in words]
    with pytest.raises(UserError) as error:
        command(monkeypatch, model, "--out", tmp_path / "x.png", *given_words)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def lost(model: Path, tmp_path: Path) -> Path:
    """A model whose weights are no numbers any more."""
    weights = export.weights(export.load(model))
    name = "energies.grids.1.features.0.bias"
    config = to_yaml(export.load(model).config)
    path = tmp_path / "lost.safetensors"
    save_file(
        weights | {name: weights[name] * float("nan")},
        path,
        {"format": export.FORMAT, "config": config, "step": "0"},
    )
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["--out", "x.png"],
        ["--out", "many"],
        ["--film", "2", "--out", "x.png"],
        ["--interpolate", "2", "--out", "x.png"],
        ["--inpaint", "IMAGES", "--mask", "left", "--out", "x.png"],
        ["--denoise", "IMAGES", "--sd", "0.2", "--out", "x.png"],
        ["--score", "IMAGES", "--out", "x.csv"],
    ],
)
def test_pictures_that_are_no_numbers_are_not_written(
    lost: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given_words = [str(folder) if word == "IMAGES" else word for word in words]
    with pytest.raises(UserError, match="did not stay finite; take another checkpoint"):
        command(monkeypatch, lost, *given_words)
    assert not any((tmp_path / name).exists() for name in ("x.png", "x.csv", "many/000000.png"))


def test_a_place_that_takes_no_file_is_known_before_anything_is_drawn(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_chains(*_: object) -> None:
        raise AssertionError("chains ran")

    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sample.tasks, "film", no_chains)
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
    there, film = [], tasks.film

    def watched(*given: object) -> Tensor:
        there.append(len(list((tmp_path / "many").glob("*.png"))))
        return film(*given)

    monkeypatch.setattr(sample.tasks, "film", watched)
    command(monkeypatch, model, "--count", 10, "--batch", 4, "--out", tmp_path / "many")
    assert there == [0, 4, 8]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [f"{n:06d}.png" for n in range(10)]


def test_psnr_of_a_known_error() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    assert tasks.psnr(truth + 0.2, truth) == pytest.approx(20.0)
    where = torch.zeros(4, 4, dtype=torch.bool)
    where[0] = True
    image = truth.clone()
    image[:, :, 1:] = 1.0
    image[:, :, 0] = 0.02
    assert tasks.psnr(image, truth, where) == pytest.approx(40.0)
    assert np.isfinite(tasks.psnr(image, truth))
