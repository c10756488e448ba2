"""The same images give the same shards, byte by byte, in webdataset's format."""

import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset
from builds import draw, make, noise, stored, tree

from ggcn.data import manifest_file
from ggcn.shards import build, crop, sources


def test_the_bytes_do_not_depend_on_workers_or_folder(image_folder: Path, tmp_path: Path) -> None:
    draw(image_folder / "broken.png", noise(0)).write_bytes(b"no image")
    make(image_folder, tmp_path / "one", "--size", 16, "--workers", 1, "--holdout", 0.3)
    moved = image_folder.rename(tmp_path / "elsewhere")
    make(moved, tmp_path / "three", "--size", 16, "--workers", 3, "--holdout", 0.3)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")
    assert len(manifest_file.load(tmp_path / "one").shards) > 2


def test_a_folder_a_zip_and_a_tar_give_the_same_shards(image_folder: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", image_folder)
    shutil.make_archive(str(tmp_path / "packed"), "tar", image_folder)
    for source in (image_folder, tmp_path / "packed.zip", tmp_path / "packed.tar"):
        make(source, tmp_path / f"out{source.suffix}", "--size", 16)
    assert tree(tmp_path / "out") == tree(tmp_path / "out.zip") == tree(tmp_path / "out.tar")


def test_a_zip_that_is_open_already_is_read_by_every_worker_for_itself(
    image_folder: Path, tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", image_folder)
    source = sources.find(str(tmp_path / "packed.zip"))
    sources.read(source.location, source.entries[0])
    options = crop.Options(16, shard_samples=1)
    build.build(source, {tmp_path / "two": options}, 2)
    build.build(source, {tmp_path / "one": options}, 1)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_shard_mixes_the_folders_and_the_seed_decides_how(image_folder: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 1):
        out = tmp_path / f"out{seed}"
        make(image_folder, out, "--size", 8, "--shard-samples", 10, "--shuffle-seed", seed)
        orders.append([name for name, _, _ in stored(out)])
        for first in range(0, 40, 10):
            kinds = [name.split("/")[0] for name in orders[-1][first : first + 10]]
            assert 1 <= kinds.count("cats") <= 9
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_stock_webdataset_reads_what_the_offsets_point_at(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "out", "--size", 16)
    urls = [str(tmp_path / "out" / shard.name) for shard in manifest_file.load(tmp_path / "out").shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["png"] for sample in read] == [data for _, _, data in stored(tmp_path / "out")]
    assert [sample["__key__"] for sample in read] == [f"{index:09d}" for index in range(40)]
    assert {key for sample in read for key in sample if not key.startswith("__")} == {"png"}
    with tarfile.open(urls[0]) as tar:
        assert {(member.mtime, member.uname, member.gname) for member in tar} == {(0, "ggcn", "ggcn")}


def test_the_tars_are_those_of_webdatasets_writer(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "out", "--size", 16, "--shard-samples", 40)
    with webdataset.TarWriter(str(tmp_path / "its.tar"), user="ggcn", group="ggcn", mtime=0) as writer:
        for index, (_, _, data) in enumerate(stored(tmp_path / "out")):
            writer.write({"__key__": f"{index:09d}", "png": data})
    assert (tmp_path / "its.tar").read_bytes() == (tmp_path / "out" / "000000.tar").read_bytes()


@pytest.mark.parametrize("more", [[], ["--crop", "grid", "--scales", "1"], ["--shard-samples", "5"]])
def test_several_sizes_at_once_give_the_same_as_separate_builds(
    image_folder: Path, tmp_path: Path, more: list[str]
) -> None:
    """With shards that begin at other images for every size, images too small for some, and large JPEGs."""
    for seed in range(3):
        draw(image_folder / f"{seed}.jpg", noise(seed, 300, 260), quality=90)
    (image_folder / "text.png").write_text("not an image")
    draw(image_folder / "narrow.png", noise(1, 40, 10))
    for size in (8, 24, 30):
        make(image_folder, tmp_path / "alone" / str(size), "--size", size, "--holdout", 0.3, *more)
    make(image_folder, tmp_path / "at_once", "--size", "30,8,24,8", "--holdout", 0.3, *more)
    assert tree(tmp_path / "at_once") == tree(tmp_path / "alone")
    for size in (8, 30):
        assert (
            make(image_folder, tmp_path / "at_once" / str(size), "--size", size, "--holdout", 0.3, *more) == 0
        )
