"""Damaged and hostile files: each is one sentence or a success, never another exception, never a wait of ten seconds,
and never an accepted file whose hash is another. 520 inputs every day, 10,000 with -m slow."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_run import commit, foreign_run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import altered, answers_in_time, damaged, edits, is_sentence, replacements, to_bytes
from PIL import Image
from safetensors.torch import load_file as tensors_of
from safetensors.torch import save_file

from ggcn.applications import export
from ggcn.cli import inspect_checkpoint, status_text
from ggcn.config import compose
from ggcn.data import manifest_file, verification
from ggcn.errors import UserError
from ggcn.evaluation import samples
from ggcn.report import layout
from ggcn.run import checkpoint, status
from ggcn.run.directory import RunDir
from ggcn.sampling import sampler
from ggcn.shards import crop, image_file, sources, verify

EVERY_DAY, SLOW = 40, 770
counts = pytest.mark.parametrize("count", [EVERY_DAY, pytest.param(SLOW, marks=pytest.mark.slow)])
bytes_or_values = st.one_of(edits, replacements.map(tuple))
"""changes of bytes (a list), or of JSON values (a tuple)"""


def fuzz(count: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Runs `check` on `count` inputs, the same ones every day."""

    @settings(
        max_examples=count,
        derandomize=count == EVERY_DAY,
        deadline=None,
        database=None,
        phases=(Phase.generate,),  # shrinking a failure takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(change: Any) -> None:
        with answers_in_time():
            check(change)

    run()


def mutate(data: bytes, change: Any) -> bytes:
    """A JSON file's bytes after changes of bytes or of values."""
    return (
        damaged(data, change)
        if isinstance(change, list)
        else to_bytes(altered(json.loads(data), list(change)))
    )


def sentence_or(call: Callable[[], Any]) -> Any:
    """What `call` returns; None where it raised a UserError of one sentence."""
    try:
        return call()
    except UserError as error:
        refusal = error
    assert is_sentence(refusal), str(refusal)
    return None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that another person handed over."""
    return foreign_run(tmp_path_factory.mktemp("runs") / "tiny").path


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder to damage it."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def shards(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's shards."""
    return shutil.copytree(faces, tmp_path_factory.mktemp("fuzz") / "shards")


@counts
def test_manifests(count: int, shards: Path) -> None:
    text = (shards / "manifest.json").read_bytes()
    real = manifest_file.parse(text, "manifest.json", shards)

    def check(change: Any) -> None:
        found = sentence_or(lambda: manifest_file.parse(mutate(text, change), "manifest.json", shards))
        if found is not None and sentence_or(lambda: verification.check_files(found, full=True) or True):
            assert (
                found.shards.digests == real.shards.digests
            ).all()  # what it accepts are the bytes that lie there

    fuzz(count, bytes_or_values, check)


@counts
@pytest.mark.parametrize("name", ["index.bin", "00000.tar"])
def test_shards_and_indices_that_changed_are_not_accepted(
    count: int, name: str, copy: Callable[[Path], Path], shards: Path
) -> None:
    folder = copy(shards)
    path = next(folder.glob(f"*{Path(name).suffix}"))
    data = path.read_bytes()

    def check(change: Any) -> None:
        path.write_bytes(mutated := damaged(data, change))
        manifest = manifest_file.load(folder)
        accepted = sentence_or(lambda: verification.check_files(manifest, full=True) or True)
        assert bool(accepted) == (mutated == data)

    fuzz(count, edits, check)


@counts
def test_tars_inside(count: int, copy: Callable[[Path], Path], shards: Path) -> None:
    """A forger's tar, whose hash nobody checks: verify_shards lists its problems, make_shards reads what it can."""
    folder = copy(shards)
    manifest, index = verify.open_folder(folder)
    assert index is not None
    shard, path = manifest.shards[0], folder / manifest.shards[0].name
    data, ranges = path.read_bytes()[:20480], index[:12]

    def check(change: Any) -> None:
        path.write_bytes(damaged(data, change))
        assert all("\n" not in problem for problem in verify.check_samples(manifest, True, shard, ranges))
        source = sentence_or(lambda: sources.find(str(path)))
        for entry in source.entries if source else ():
            assert "\n" not in sources.content_hash(str(path), entry)

    fuzz(count, edits, check)


def picture(kind: str, **options: Any) -> bytes:
    """A small image's file."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


PICTURES = {
    "jpeg": picture("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    "png": picture("PNG", dpi=(72, 72)),
    "webp": picture("WEBP"),
    "tiff": picture("TIFF", compression="tiff_lzw"),
}


@counts
@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.filterwarnings("ignore")
def test_pictures(count: int, kind: str) -> None:
    data, options = PICTURES[kind], crop.Options(16)

    def check(change: Any) -> None:
        mutated = damaged(data, change)
        try:
            results = list(crop.samples_of(mutated, options, {}))
        except Exception as error:  # make_shards lists the picture as rejected, with this reason
            results, reason = [], crop.reject_reason(error)
        assert results or len(reason) > 3
        for _, encoded in results:
            with Image.open(io.BytesIO(encoded)) as image:
                assert image.size == (16, 16)

    fuzz(count, edits, check)


@counts
def test_configs(count: int, tiny: Path) -> None:
    text = RunDir(tiny).config.read_bytes()

    def check(change: Any) -> None:
        mutated = damaged(text, change).decode("utf-8", "replace")
        sentence_or(lambda: compose.parse(mutated, Path("config.yaml")))

    fuzz(count, edits, check)


@counts
def test_metadata_of_checkpoints(
    count: int, tiny: Path, copy: Callable[[Path], Path], capsys: pytest.CaptureFixture
) -> None:
    """Of a forger, who also writes the COMPLETE that belongs to it."""
    run = RunDir(copy(tiny))
    folder = checkpoint.at_step(run.checkpoints, 5)
    meta, best = (folder / "meta.json").read_bytes(), (run.checkpoints / "best").read_bytes()

    def check(change: Any) -> None:
        commit(folder, meta)
        (run.checkpoints / "best").write_bytes(mutate(best, change))
        checkpoint.best(run.checkpoints)
        (folder / "meta.json").write_bytes(mutated := mutate(meta, change))
        if mutated != meta:
            assert checkpoint.faults(folder) is not None  # COMPLETE is not its own
        commit(folder, mutated)
        checkpoint.healthy(folder)
        inspect_checkpoint.inspect(folder)
        if loaded := sentence_or(lambda: sampler.load(run.path)):
            sentence_or(lambda: samples.sampling_settings(loaded, 0))

    fuzz(count, bytes_or_values, check)
    capsys.readouterr()


@counts
def test_weights_that_changed_are_not_loaded(count: int, tiny: Path, copy: Callable[[Path], Path]) -> None:
    run = RunDir(copy(tiny))
    path = checkpoint.at_step(run.checkpoints, 5) / "ema.pt"
    data = path.read_bytes()

    def check(change: Any) -> None:
        path.write_bytes(mutated := damaged(data, change))
        assert (sentence_or(lambda: sampler.load(run.path)) is not None) == (mutated == data)

    fuzz(count, edits, check)


@counts
def test_exported_files(count: int, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export.export(tiny, path)
    data, weights = path.read_bytes(), tensors_of(path)

    def check(change: Any) -> None:
        path.write_bytes(damaged(data, change))
        if loaded := sentence_or(lambda: export.load(path)):
            found = export.weights(loaded)
            assert all(torch.equal(found[name], value) for name, value in weights.items())
            sentence_or(lambda: samples.sampling_settings(loaded, 0))

    fuzz(count, edits, check)
    save_file(weights, path)  # without its metadata
    assert sentence_or(lambda: export.load(path)) is None


RECORDS = ("metrics.jsonl", "evaluations.jsonl", "incidents.jsonl", "submissions.jsonl", "config.yaml")


@counts
def test_lines_of_runs(count: int, tiny: Path, copy: Callable[[Path], Path]) -> None:
    """Metrics, evaluations, incidents and events: the status and the report show what can be read."""
    run = RunDir(copy(tiny))
    originals = {name: (run.path / name).read_bytes() for name in RECORDS}

    def check(change: tuple[str, Any]) -> None:
        name, how = change
        data = originals[name]
        if isinstance(how, list) or name == "config.yaml":
            mutated = damaged(data, how) if isinstance(how, list) else data
        else:
            mutated = b"\n".join(to_bytes(altered(json.loads(line), list(how))) for line in data.splitlines())
        (run.path / name).write_bytes(mutated)
        sentence_or(lambda: status_text.report(status.read(run)))
        sentence_or(lambda: layout.write(run, run.path / "page.html", None))
        (run.path / name).write_bytes(data)

    fuzz(count, st.tuples(st.sampled_from(RECORDS), bytes_or_values), check)


def test_a_tar_of_all_kinds_of_members_is_read(tmp_path: Path) -> None:
    """Links in circles, to nowhere, devices, and a file that is said to have more bytes than the tar."""
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in odd_members():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        info = tarfile.TarInfo("huge.png")
        info.size = 2**40
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    with answers_in_time():
        source = sentence_or(lambda: sources.find(str(path)))
        for entry in source.entries if source else ():
            assert sources.is_unreadable(sources.content_hash(str(path), entry))


def odd_members() -> Iterator[tuple[str, bytes, str]]:
    """Names, types and targets."""
    yield "a.png", tarfile.SYMTYPE, "b.png"
    yield "b.png", tarfile.SYMTYPE, "a.png"
    yield "c.png", tarfile.SYMTYPE, "/etc/passwd"
    yield "d.png", tarfile.CHRTYPE, ""
    yield "e.png", tarfile.FIFOTYPE, ""


def test_images_of_more_pixels_than_memory_are_refused_by_their_header() -> None:
    data = bytearray(PICTURES["png"])
    data[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    with answers_in_time(), pytest.raises(Exception, match=r".") as error:
        list(crop.samples_of(bytes(data), crop.Options(16), {}))
    assert len(crop.reject_reason(error.value)) > 3
    assert image_file.MAX_PIXELS < 2**31
