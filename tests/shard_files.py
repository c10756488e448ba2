"""Small real shard folders, and a real web server for them."""

import contextlib
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

from ggcn.data import index_file, manifest, manifest_file
from ggcn.data.manifest import Manifest, Shard, Shards

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def noise_image(number: int, size: int = 8, channels: int = 3) -> np.ndarray:
    """Noise, uint8 [size, size, channels], different for each number."""
    return np.random.default_rng(number).integers(0, 256, (size, size, channels), dtype=np.uint8)


def encode(pixels: np.ndarray, extension: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, FORMATS[extension], quality=95, lossless=True)
    return file.getvalue()


def decode(data: bytes) -> np.ndarray:
    """uint8 [size, size, channels]"""
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels.reshape(*pixels.shape[:2], -1)


def build(
    folder: Path,
    counts: Sequence[int],
    size: int = 8,
    extension: str = "png",
    channels: int = 3,
    images: Sequence[bytes] | None = None,
) -> Manifest:
    """Shards with `counts` samples each; sample i is `noise_image(i)`, or `images[i]` unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = [encode(noise_image(i, size, channels), extension) for i in range(sum(counts))]
    rest = iter(enumerate(images))
    shards, ranges = [], []
    for number, count in enumerate(counts):
        path = folder / f"{number:06d}.tar"
        with wds.TarWriter(str(path), mtime=0) as tar:
            for _ in range(count):
                key, data = next(rest)
                tar.write({"__key__": f"{key:08d}", extension: data})
        shards.append(describe(path))
        ranges.append(ranges_in(path))
    total = sum(shard.bytes for shard in shards)
    index = index_file.write_index(folder, ranges)
    built = Manifest(size, channels, extension, sum(counts), total, {}, 0, Shards.of(shards), index, folder)
    built.save(folder)
    return built


def stored(data: Manifest) -> list[np.ndarray]:
    """The images as they are stored in the shards, uint8 [size, size, channels]."""
    images, ranges = [], index_file.open_index(data)
    for number, shard in enumerate(data.shards):
        tar = (data.folder / shard.name).read_bytes()
        part = ranges[data.first[number] : data.first[number + 1]]
        images += [decode(tar[offset : offset + size]) for offset, size in part.tolist()]
    return images


def ranges_in(path: Path) -> np.ndarray:
    """Where tarfile finds the members of a shard."""
    with tarfile.open(path) as tar:
        return np.array([(m.offset_data, m.size) for m in tar.getmembers()], index_file.BYTE_RANGE)


def describe(path: Path) -> Shard:
    data = path.read_bytes()
    return Shard(path.name, len(ranges_in(path)), len(data), hashlib.sha256(data).hexdigest())


def first_version(folder: Path) -> None:
    """Writes the folder's manifest as the first version of make_shards did, without an index."""
    data = manifest_file.load(folder)
    value = json.loads((folder / manifest.NAME).read_text())
    ranges = index_file.open_index(data)
    for number, shard in enumerate(value["shards"]):
        part = ranges[data.first[number] : data.first[number + 1]]
        shard |= {"offsets": part["offset"].tolist(), "sizes": part["size"].tolist()}
    (folder / value.pop("index")["name"]).unlink()
    (folder / manifest.NAME).write_text(json.dumps({**value, "version": 1}) + "\n")


@dataclass
class Server:
    """What a web server has sent, and how many requests it refuses next."""

    url: str
    refuse: int = 0
    busy: bool = False
    """every request for a shard is refused"""
    ranges: bool = True
    paths: list[str] = field(default_factory=list)
    """files sent, one entry per answer"""
    refused: int = 0


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Files of `folder` on 127.0.0.1, with byte ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if state.refuse > 0 or (state.busy and path.suffix == ".tar"):
                state.refuse, state.refused = state.refuse - 1, state.refused + 1
                return self.send_error(503)
            if not path.is_file():
                return self.send_error(404)
            return self.send(path.read_bytes(), self.headers.get("Range") if state.ranges else None)

        def send(self, data: bytes, span: str | None) -> None:
            whole = len(data)
            if span:
                first, last = span.removeprefix("bytes=").split("-")
                data = data[int(first) : int(last) + 1]
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            state.paths.append(self.path.lstrip("/"))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
