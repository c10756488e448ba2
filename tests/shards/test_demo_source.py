"""The demos' photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
from builds import make
from PIL import Image

from ggcn.errors import UserError
from ggcn.shards import demo_source, sources


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


def test_an_absent_demo_package_is_named_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo_source.DEMOS, "faces", {"ggcn-absent": ["*.pgm"]})
    demo_source.demo_paths.cache_clear()
    with pytest.raises(UserError, match=r"ggcn-absent.*pip install 'ggcn\[demo\]'"):
        make("demo:faces", tmp_path / "out", "--size", 8)
