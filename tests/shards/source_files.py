"""Sources of images in the layouts of others: tables, databases, batches and archives with captions."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from builds import noise

CLASSES = ["airplane", "automobile", "bird"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def encoded(seed: int, kind: str = "PNG") -> bytes:
    """The file of an image unlike any other."""
    file = io.BytesIO()
    noise(seed).save(file, kind)
    return file.getvalue()


def table(first: int, count: int) -> Any:
    """An Arrow table as the `datasets` library makes it: a struct of bytes and path, a class label, a caption."""
    import pyarrow as pa

    numbers = range(first, first + count)
    columns = {
        "image": [{"bytes": encoded(i), "path": f"{i}.png"} for i in numbers],
        "label": [i % 2 for i in numbers],
        "text": [f"number {i}" for i in numbers],
    }
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.table(columns).replace_schema_metadata(metadata)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote text, as in CIFAR's batches."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_text(self, value: bytes) -> None:
        """The opcode BINSTRING."""
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_text


def python2_pickle(value: Any) -> bytes:
    """A pickle as Python 2 wrote it."""
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_pixels(seed: int, images: int) -> np.ndarray:
    """Pixels of a batch: uint8 [images, 3072], plane after plane."""
    return np.random.default_rng(seed).integers(0, 256, (images, 3072), np.uint8)


def cifar_python(folder: Path, order: str = "C") -> None:
    """Batches as in cifar-10-python.tar.gz."""
    folder.mkdir(parents=True)
    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        data = np.asarray(cifar_pixels(number, 8), order=order)  # type: ignore[call-overload]
        batch = {b"batch_label": b"a batch", b"labels": [i % 3 for i in range(8)], b"data": data}
        (folder / name).write_bytes(python2_pickle(batch))
    names = {b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(names))
    (folder / "readme.html").write_text("about", encoding="utf-8")


def cifar_binary(folder: Path) -> None:
    """The same batches as in cifar-10-binary.tar.gz."""
    folder.mkdir(parents=True)
    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        labels = (np.arange(8, dtype=np.uint8) % 3)[:, None]
        np.hstack([labels, cifar_pixels(number, 8)]).tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n", encoding="utf-8")


def img2dataset(folder: Path, shards: int = 2, count: int = 5) -> None:
    """Tars as img2dataset writes them: JPEG, caption and metadata for each key, and statistics next to the tars."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * count, shard * count + count):
                about = json.dumps({"caption": f"number {number}", "url": f"https://host/{number}.jpg"})
                for ending, body in (
                    ("jpg", encoded(number, "JPEG")),
                    ("txt", f"number {number}\n".encode()),
                    ("json", about.encode()),
                ):
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 5}', encoding="utf-8")


def annotations(out: Path) -> dict[str, Any]:
    """What the shards' sidecars say about their images, by name."""
    result: dict[str, Any] = {}
    for path in sorted(out.glob("[0-9]*.json")):
        result |= json.loads(path.read_text(encoding="utf-8")).get("annotations", {})
    return result
