"""What a run remembers of its data from start to start: bad images are counted, folders may move."""

import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import shard_files as shards
from helpers import TINY, call
from PIL import Image

from ggcn.config.compose import compose
from ggcn.config.data import DataConfig
from ggcn.data import stream
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.run.directory import RunDir


def photograph(number: int) -> bytes:
    """16 x 16 pixels; every seventh cannot be decoded."""
    file = io.BytesIO()
    Image.fromarray(shards.picture(number, 4)).resize((16, 16)).save(file, "PNG")
    return file.getvalue() if number % 7 else b"not an image"


def test_bad_images_are_counted_over_all_ranks_and_starts_of_a_run(tmp_path: Path) -> None:
    shards.build(tmp_path / "shards", [30, 30], 16, images=[photograph(number) for number in range(60)])
    share, batch = 0.125, 16
    config = DataConfig(str(tmp_path / "shards"), workers=0)
    with stream.build(config, Lanes(4, width=4), 3, 16) as batches:
        counts = list(itertools.accumulate(len(next(batches).faults) for _ in range(8)))
    end = next(step for step, count in enumerate(counts, 1) if count > max(3, share * step * batch))
    assert end > 1, "the count would not have to outlast a start"

    def run(steps: int, ranks: int) -> tuple[int, str]:
        words = [
            f"data.shards={config.shards}",
            f"paths.runs={tmp_path}",
            "run=one",
            f"data.max_bad_fraction={share}",
        ]
        launched = call(
            "cluster/launch.py",
            "-m",
            "local",
            *TINY,
            *words,
            f"train.steps={steps}",
            f"cluster.ranks={ranks}",
        )
        return launched.returncode, launched.stderr

    code, said = run(end - 1, 2)
    assert code == 0, said
    meta = tmp_path / "one/checkpoints" / f"step_{end - 1:08d}" / "meta.json"
    assert json.loads(meta.read_text())["replaced"] == counts[end - 2]
    code, said = run(8, 1)
    assert code != 0
    assert f"{counts[end - 1]} of {end * batch} images could not be decoded" in said
    assert "Traceback" not in said


def test_the_folders_of_a_mixture_may_move_and_their_weights_may_not_change(tmp_path: Path) -> None:
    def config(*folders: str) -> list[str]:
        return [*TINY, f"paths.runs={tmp_path}", "data.shards=''", f"+data.mixture={{{','.join(folders)}}}"]

    run = RunDir(tmp_path / "one")
    run.freeze(compose(config("/old/faces:3", "/old/scenes:1")))
    run.refuse_changes(compose(config("/new/faces:3", "/new/scenes:1")))
    for changed in (["/old/faces:2", "/old/scenes:1"], ["/old/scenes:1", "/old/faces:3"], ["/old/faces:3"]):
        with pytest.raises(UserError, match=r"data.mixture: \[3.0, 1.0\] -> \["):
            run.refuse_changes(compose(config(*changed)))
    shutil.rmtree(run.path)
