"""From a JPEG's bytes to pixels: the decoders that come as wheels; those that are not installed are left out."""

import contextlib
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from tools.benchmarks.data.cases import photo_cases
from tools.benchmarks.report import Table, log, measure_in_turns, median_text, ratio

FASTEST = {"jpg": "simplejpeg", "png": "Pillow", "webp": "Pillow"}
"""what the project decodes with, by the images' ending"""
Decoder = Callable[[bytes], np.ndarray]


def decoders(extension: str) -> dict[str, Decoder]:
    """Those that are installed; each gives uint8 [height, width, 3]."""
    kind = Image.registered_extensions()[f".{extension}"]
    available: dict[str, Decoder] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data), formats=(kind,)))
    }
    if extension == "jpg":
        available["simplejpeg"] = simplejpeg.decode_jpeg
        with contextlib.suppress(ImportError):
            available["opencv-python-headless"] = opencv()
        with contextlib.suppress(ImportError, RuntimeError):  # its wheel brings no library along
            available["PyTurboJPEG"] = turbojpeg()
    return available


def opencv() -> Decoder:
    """Raises ImportError where it is not installed."""
    import cv2  # type: ignore[import-not-found, unused-ignore]

    cv2.setNumThreads(1)
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def turbojpeg() -> Decoder:
    """Raises ImportError where it is not installed, RuntimeError where the system has no libturbojpeg."""
    from turbojpeg import TJPF_RGB, TurboJPEG  # type: ignore[import-not-found, unused-ignore]

    return partial(TurboJPEG().decode, pixel_format=TJPF_RGB)


def rate(decode: Decoder, images: list[bytes], seconds: float) -> float:
    """Images per second."""
    decode(images[0])
    start, count, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        for data in images:
            decode(data)
        count, passed = count + len(images), time.perf_counter() - start
    return count / passed


def decoding(sizes: list[int], folder: Path, seconds: float, rounds: int) -> Table:
    """JPEGs of several sizes by every decoder, in memory."""
    log("decoding")
    images = {
        size: [path.read_bytes() for path in case.paths()]
        for size, case in photo_cases(folder, sizes).items()
    }
    rivals = decoders("jpg")
    times = measure_in_turns(
        {
            (size, name): partial(rate, rivals[name], images[size], seconds)
            for size in sizes
            for name in rivals
        },
        rounds,
    )
    rows = [
        [
            str(size),
            name,
            ratio(times[size, name], times[size, "Pillow"]),
            "yes" if same(rivals[name], rivals["Pillow"], images[size]) else "no",
            median_text(times[size, name]),
        ]
        for size, name in times
    ]
    return Table("Decoders of JPEGs", ["px", "decoder", "it / Pillow", "Pillow's pixels", "images/s"], rows)


def same(one: Decoder, other: Decoder, images: list[bytes]) -> bool:
    """Whether two decoders agree to the last bit."""
    return all(np.array_equal(one(data), other(data)) for data in images)
