"""Tables, databases, batches and archives of others give the images, labels and captions that lie in them."""

import io
import json
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import source_files
from builds import draw, make, noise, samples, tree
from PIL import Image
from source_files import annotations, encoded

from ggcn.data import manifest_file
from ggcn.errors import UserError
from ggcn.shards import sources


def test_a_folder_of_parquet_files_as_on_hugging_face(tmp_path: Path, capsys: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in" / "data").mkdir(parents=True)
    for name, first, count in (
        ("train-00000-of-00002", 0, 50),
        ("train-00001-of-00002", 50, 30),
        ("test", 80, 9),
    ):
        file = tmp_path / "in" / "data" / f"{name}.parquet"
        parquet.write_table(source_files.table(first, count), file, row_group_size=20)
    (tmp_path / "in" / "README.md").write_text("about", encoding="utf-8")
    make(tmp_path / "in", tmp_path / "out", "--size", 30, "--shard-samples", 16, "--split", "train")
    result = samples(tmp_path / "out")
    assert len(result) == manifest_file.load(tmp_path / "out").samples == 80
    name = "data/train-00001-of-00002.parquet/000000007"
    assert result[name].tobytes() == noise(57).crop((5, 0, 35, 30)).tobytes()
    assert annotations(tmp_path / "out")[name] == {"label": 1, "label_name": "dog", "text": "number 57"}
    make(tmp_path / "in", tmp_path / "all", "--size", 30)
    assert "declares splits (test 9, train 80) and all are taken; see --split" in capsys.readouterr().out
    assert (
        make(tmp_path / "in", tmp_path / "out", "--size", 30, "--shard-samples", 16, "--split", "train") == 0
    )
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["stream", "file", "compressed file", "feather"])
def test_arrow_files_give_what_parquet_gives(tmp_path: Path, how: str) -> None:
    pa = pytest.importorskip("pyarrow")
    rows, path = source_files.table(0, 40), tmp_path / "rows.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd" if how == "compressed file" else None)
    if how == "feather":
        path = path.with_suffix(".feather")
        pytest.importorskip("pyarrow.feather").write_feather(rows, str(path))
    else:
        writer = pa.ipc.new_stream if how == "stream" else pa.ipc.new_file
        with writer(str(path), rows.schema, options=options) as file:
            file.write_table(rows, max_chunksize=7)
    make(path, tmp_path / "out", "--size", 30)
    result = samples(tmp_path / "out")
    assert result["000000033"].tobytes() == noise(33).crop((5, 0, 35, 30)).tobytes()
    assert annotations(tmp_path / "out")["000000033"]["text"] == "number 33"


def test_columns_of_images(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"left": [encoded(i) for i in range(9)], "right": [encoded(i + 9) for i in range(9)]}
    parquet.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=r"name one with --column, of left \(binary\), right \(binary\)"):
        sources.find(str(tmp_path / "pairs.parquet"))
    with pytest.raises(UserError, match="has no column middle"):
        sources.find(str(tmp_path / "pairs.parquet"), column="middle")
    source = sources.find(str(tmp_path / "pairs.parquet"), column="right")
    assert sources.read(source.location, source.entries[2]) == encoded(11)
    assert sources.annotation(source.location, source.entries[2]) == {}


def test_rows_without_an_image_are_listed(tmp_path: Path, capsys: Any) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows: list[Any] = [{"bytes": encoded(i), "path": None} for i in range(8)]
    rows += [{"bytes": None, "path": "/etc/passwd"}, None]
    parquet.write_table(pa.table({"image": rows}), tmp_path / "rows.parquet")
    make(tmp_path / "rows.parquet", tmp_path / "out", "--size", 8)
    printed = capsys.readouterr().out
    assert "000000008: the row has a path instead of an image" in printed
    assert "000000009: the row has no image" in printed


def test_an_lmdb_database_as_lsun_has_it(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "in" / "bedroom_val_lmdb"
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 26) as database, database.begin(write=True) as writing:
        for seed in range(20):
            writing.put(f"{seed:040x}".encode(), encoded(seed, "WEBP" if seed % 2 else "JPEG"))
        writing.put(b"\xff\x00", encoded(99))
    for source in (path, tmp_path / "in"):
        out = tmp_path / f"out{source.name}"
        make(source, out, "--size", 16, "--split", "val" if source == path.parent else "")
        assert len(samples(out)) == 21
    assert f"bedroom_val_lmdb/{3:040x}" in samples(tmp_path / "outin")
    assert "bedroom_val_lmdb/0xff00" in samples(tmp_path / "outin")
    found = sources.find(str(path))  # read in this process, then by workers
    assert sources.read(found.location, found.entries[0])
    make(path, tmp_path / "again", "--size", 16, "--workers", 2)
    assert tree(tmp_path / "again") == tree(tmp_path / f"out{path.name}")


def test_a_truncated_database_is_refused(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with (
        lmdb.open(str(tmp_path / "a_lmdb"), map_size=1 << 22) as database,
        database.begin(write=True) as writing,
    ):
        for seed in range(20):
            writing.put(b"%d" % seed, encoded(seed))
    os.truncate(tmp_path / "a_lmdb" / "data.mdb", 40_000)
    with pytest.raises(UserError, match="a_lmdb is truncated"):
        sources.find(str(tmp_path))


@pytest.mark.parametrize("how", ["pickled", "pickled by columns", "binary"])
def test_cifars_batches(tmp_path: Path, how: str) -> None:
    if how == "binary":
        source_files.cifar_binary(tmp_path / "in")
    else:
        source_files.cifar_python(tmp_path / "in", "F" if "columns" in how else "C")
    make(tmp_path / "in", tmp_path / "out", "--size", 32, "--split", "train")
    result = samples(tmp_path / "out")
    assert len(result) == 16
    name = "data_batch_2.bin/00005" if how == "binary" else "data_batch_2/00005"
    expected = source_files.cifar_pixels(1, 8)[5].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(result[name]), expected)
    assert annotations(tmp_path / "out")[name] == {"label": 2, "label_name": "bird"}


class Attack:
    """Runs a program when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_in_place_of_a_batch_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for value in (
        Attack(tmp_path / "ran"),
        {b"data": Attack(tmp_path / "ran")},
        [np.zeros(3), Image.Image],
        {},
    ):
        (tmp_path / "in" / "data_batch_1").write_bytes(pickle.dumps(value, 2))
        with pytest.raises(UserError, match="is no batch of CIFAR"):
            sources.find(str(tmp_path / "in"))
    assert not (tmp_path / "ran").exists()


def test_tars_of_img2dataset_with_captions(tmp_path: Path, capsys: Any) -> None:
    source_files.img2dataset(tmp_path / "in")
    make(tmp_path / "in", tmp_path / "out", "--size", 16)
    about = {"txt": "number 7", "json": {"caption": "number 7", "url": "https://host/7.jpg"}}
    assert annotations(tmp_path / "out")["00001.tar/000000007.jpg"] == about
    assert len(samples(tmp_path / "out")) == len(annotations(tmp_path / "out")) == 10
    assert "2 other files" in capsys.readouterr().out
    make(tmp_path / "in" / "00001.tar", tmp_path / "one", "--size", 16)
    assert annotations(tmp_path / "one")["000000007.jpg"] == about


def test_captions_are_the_same_from_a_folder_a_zip_and_a_tar_and_are_compared(
    tmp_path: Path, capsys: Any
) -> None:
    for number in range(6):
        draw(tmp_path / "in" / f"{number}.png", noise(number))
        (tmp_path / "in" / f"{number}.txt").write_text(f"caption {number}", encoding="utf-8")
    (tmp_path / "in" / "3.cls").write_text("7\n", encoding="utf-8")
    for kind in ("zip", "tar"):
        shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "in")
    for source in (tmp_path / "in", tmp_path / "packed.zip", tmp_path / "packed.tar"):
        make(source, tmp_path / f"out{source.suffix}", "--size", 16)
    assert tree(tmp_path / "out") == tree(tmp_path / "out.zip") == tree(tmp_path / "out.tar")
    assert annotations(tmp_path / "out")["3.png"] == {"txt": "caption 3", "cls": 7}
    (tmp_path / "in" / "3.txt").write_text("another", encoding="utf-8")
    make(tmp_path / "in", tmp_path / "out", "--size", 16)
    assert "1 images changed" in capsys.readouterr().out
    assert annotations(tmp_path / "out")["3.png"] == {"txt": "another", "cls": 7}


@pytest.mark.parametrize("form", ["folder", "zip", "csv"])
def test_celeba_as_its_authors_ship_it(tmp_path: Path, form: str) -> None:
    names = [f"{number:06d}.jpg" for number in range(1, 7)]
    for number, name in enumerate(names):
        draw(tmp_path / "img_align_celeba" / name, noise(number), quality=90)
    (tmp_path / "Anno").mkdir()
    values = [("1", "-1") if number % 2 else ("-1", "1") for number in range(6)]
    if form == "csv":
        lines = ["image_id,Bald,Smiling"] + [f"{n},{a},{b}" for n, (a, b) in zip(names, values, strict=True)]
        parts = ["image_id,partition"] + [f"{name},{index // 2}" for index, name in enumerate(names)]
    else:
        lines = ["6", "Bald Smiling "] + [
            f"{n} {a:>2} {b:>2}" for n, (a, b) in zip(names, values, strict=True)
        ]
        parts = [f"{name} {index // 2}" for index, name in enumerate(names)]
    ending = "csv" if form == "csv" else "txt"
    (tmp_path / "Anno" / f"list_attr_celeba.{ending}").write_text(
        "\r\n".join(lines) + "\r\n", encoding="utf-8"
    )
    identities = "\n".join(f"{name} {880 + index}" for index, name in enumerate(names))
    (tmp_path / "Anno" / "identity_CelebA.txt").write_text(identities + "\n", encoding="utf-8")
    (tmp_path / f"list_eval_partition.{ending}").write_text("\n".join(parts) + "\n", encoding="utf-8")
    source = tmp_path / "img_align_celeba"
    if form == "zip":
        source = Path(shutil.make_archive(str(source), "zip", tmp_path, "img_align_celeba"))
    make(source, tmp_path / "out", "--size", 16, "--split", "val")
    found = {name.rpartition("/")[2]: value for name, value in annotations(tmp_path / "out").items()}
    assert found == {
        "000003.jpg": {"attributes": ["Smiling"], "identity": 882},
        "000004.jpg": {"attributes": ["Bald"], "identity": 883},
    }


def test_ffhq_keeps_authors_and_licences(tmp_path: Path) -> None:
    about = {}
    for number in range(4):
        draw(tmp_path / "in" / "thumbnails128x128" / "00000" / f"{number:05d}.png", noise(number))
        person = {"author": f"person {number}", "license": "CC-BY", "country": "?"}
        about[str(number)] = {"category": "training" if number else "validation", "metadata": person}
    (tmp_path / "in" / "ffhq-dataset-v2.json").write_text(json.dumps(about), encoding="utf-8")
    make(tmp_path / "in", tmp_path / "out", "--size", 16, "--split", "train")
    found = annotations(tmp_path / "out")
    assert len(samples(tmp_path / "out")) == 3
    assert found["thumbnails128x128/00000/00002.png"] == {"author": "person 2", "license": "CC-BY"}


def test_an_archive_next_to_images_is_left_alone(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", noise(1))
    source_files.img2dataset(tmp_path / "in" / "more")
    assert [entry.name for entry in sources.find(str(tmp_path / "in")).entries] == ["a.png"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server of images 0 to 9, where 7 is missing, and the paths that were requested."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            number = int(self.path.strip("/").partition(".")[0])
            body = encoded(number)
            self.send_response(404 if number == 7 else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", paths
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ending", ["txt", "csv", "tsv", "jsonl"])
def test_images_at_listed_urls(tmp_path: Path, web: tuple[str, list[str]], ending: str, capsys: Any) -> None:
    url, paths = web
    urls, file = [f"{url}/{number}.png?token={number}" for number in range(10)], tmp_path / f"list.{ending}"
    if ending == "txt":
        text = "\n".join(["# a comment", *urls, "file:///etc/passwd"])
    elif ending == "jsonl":
        text = "\n".join(json.dumps({"url": each, "caption": "a, b"}) for each in urls)
    else:
        mark = "," if ending == "csv" else "\t"
        text = "\n".join([mark.join(("caption", "URL")), *(f'"a, b"{mark}{each}' for each in urls)])
    file.write_text(text, encoding="utf-8")
    make(file, tmp_path / "out", "--size", 16, "--workers", 2)
    result = samples(tmp_path / "out")
    assert len(result) == 9
    printed = capsys.readouterr().out
    assert "404" in printed
    assert "token" not in "".join(result) + printed
    assert sorted(paths) == sorted(f"/{number}.png?token={number}" for number in range(10))
    if ending == "txt":
        assert "not a URL of a server or an object store" in printed
    else:
        assert all(each == {"caption": "a, b"} for each in annotations(tmp_path / "out").values())
    paths.clear()
    make(file, tmp_path / "out", "--size", 16)
    assert "nothing to do" in capsys.readouterr().out
    assert paths == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["https://host/a.jpg"]', "row 1 is no object"),
        ('{"link": "https://host/a.jpg"}', "has none of the columns url"),
        ('{"url": "https://host/a.jpg"', "is no list of URLs"),
    ],
)
def test_a_list_without_urls_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as refused:
        sources.find(str(tmp_path / "list.jsonl"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", ["cut", "other", "pages"])
def test_a_damaged_table_is_one_sentence_or_listed_rows(tmp_path: Path, damage: str, capsys: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(source_files.table(0, 40), path, row_group_size=20)
    data = bytearray(path.read_bytes())
    if damage == "pages":
        data[1000:1100] = bytes(100)
        path.write_bytes(data)
        make(path, tmp_path / "out", "--size", 16)
        assert 20 <= len(samples(tmp_path / "out")) < 40
        assert "could not be used" in capsys.readouterr().out
        return
    path.write_bytes(data[:5000] if damage == "cut" else b"text" * 1000)
    with pytest.raises(UserError, match="is damaged or no table"):
        make(path, tmp_path / "out", "--size", 16)


def test_a_look_at_a_source(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source_files.img2dataset(tmp_path / "in")
    with tarfile.open(tmp_path / "in" / "00002.tar", "w") as tar:
        member = tarfile.TarInfo("torn.jpg")
        member.size = 9
        tar.addfile(member, io.BytesIO(b"no images"))
    monkeypatch.chdir(tmp_path)
    make("in", "--look")
    printed = capsys.readouterr().out
    assert "in: 11 images; kind tar in 3 files" in printed
    assert "10 JPEG of 30 pixels" in printed
    assert "1 would be rejected: not an image" in printed
    assert '"txt": "number 0"' in printed
    with Image.open("look.png") as sheet:
        assert sheet.size == (8 * 66, 2 * 66)
    assert not (tmp_path / "out").exists()
    assert list(stored_names(tmp_path)) == ["in", "look.png"]


def stored_names(folder: Path) -> Iterator[str]:
    """Names in a folder, sorted."""
    yield from sorted(path.name for path in folder.iterdir())
