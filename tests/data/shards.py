"""Small real shard folders, and a real web server for them."""

import contextlib
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

from ggcn.data.manifest import Manifest, Shard

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(number: int, size: int = 8, channels: int = 3) -> np.ndarray:
    """Noise, uint8 [size, size, channels], that is another for every number."""
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
    """Shards with `counts` samples each; sample i is `picture(i)`, or `images[i]` as it stands."""
    folder.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = [encode(picture(i, size, channels), extension) for i in range(sum(counts))]
    rest = iter(enumerate(images))
    shards = []
    for number, count in enumerate(counts):
        path = folder / f"{number:06d}.tar"
        with wds.TarWriter(str(path), mtime=0) as tar:
            for _ in range(count):
                key, data = next(rest)
                tar.write({"__key__": f"{key:08d}", extension: data})
        shards.append(describe(path))
    total = sum(shard.bytes for shard in shards)
    manifest = Manifest(size, channels, extension, sum(counts), total, {}, 0, shards, folder)
    manifest.save(folder)
    return manifest


def stored(manifest: Manifest) -> list[np.ndarray]:
    """The images as they lie in the shards, uint8 [size, size, channels]."""
    images = []
    for shard in manifest.shards:
        tar = (manifest.folder / shard.name).read_bytes()
        images += [decode(tar[o : o + s]) for o, s in zip(shard.offsets, shard.sizes, strict=True)]
    return images


def describe(path: Path) -> Shard:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    offsets, sizes = [m.offset_data for m in members], [m.size for m in members]
    data = path.read_bytes()
    return Shard(path.name, len(members), len(data), hashlib.sha256(data).hexdigest(), offsets, sizes)


@dataclass
class Server:
    """What a web server did, and the next requests it is to refuse."""

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
            if span:
                first, last = span.removeprefix("bytes=").split("-")
                data = data[int(first) : int(last) + 1]
            self.send_response(206 if span else 200)
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
