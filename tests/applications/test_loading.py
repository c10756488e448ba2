"""A trained model in a notebook or a web page: what is loaded, and in what surroundings."""

import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import ggcn
from ggcn import files
from ggcn.applications import export
from ggcn.applications.denoising import denoise
from ggcn.applications.inpainting import inpaint
from ggcn.applications.interpolation import interpolate
from ggcn.applications.trajectory import trajectory
from ggcn.cli import inspect_checkpoint
from ggcn.config.compose import compose, to_yaml
from ggcn.errors import UserError
from ggcn.models.build import build, frozen
from ggcn.run import checkpoint
from ggcn.run.checkpoint_saver import Checkpoints
from ggcn.sampling import sampler as samplers
from ggcn.sampling.sampler import Sampler


def trained(path: Path, *overrides: str, steps: tuple[int, ...] = (5,), **metadata: object) -> Path:
    """A run directory with checkpoints of an untrained model, one per step."""
    config = compose([*TINY, "engine=plain", "run=tiny", *overrides])
    energies, upsamplers = build(config)
    weights = {"energies": energies.state_dict(), "upsamplers": upsamplers.state_dict()}
    files.write_text(path / "config.yaml", to_yaml(config))
    for step in steps:
        saver = Checkpoints(path / "checkpoints", config.checkpoint)
        saver.save(step, lambda: {"ema.pt": weights}, {"data": "d", **metadata})
        saver.finish()
    return path


@pytest.fixture
def run(tmp_path: Path, alone: None) -> Path:
    """A run directory."""
    return trained(tmp_path / "a run")


@pytest.fixture
def file(run: Path, tmp_path: Path) -> Path:
    """An exported model."""
    export.export(run, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def altered(file: Path, change: object = None, drop: str = "", **changes: str) -> Path:
    """Another file like `file`, with a tensor left out or replaced and other metadata; its digest is left out."""
    with safe_open(file, "pt") as opened:
        metadata = {key: value for key, value in opened.metadata().items() if key != "sha256"}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    name = "energies.grids.0.levels.0.bias"
    if change is None:
        del tensors[name]
    elif isinstance(change, Tensor):
        tensors[name] = change
    kept = {key: value for key, value in (metadata | changes).items() if key != drop}
    save_file(tensors, file.with_name("altered.safetensors"), kept)
    return file.with_name("altered.safetensors")


@pytest.mark.usefixtures("alone")
def test_chains_run_for_the_time_of_the_checkpoint_and_of_its_export(tmp_path: Path) -> None:
    transport = ("model=ggcn", "model.grids=[4,16]")
    run = trained(tmp_path / "run", *transport, sampling={"time": [1.5, 1.75], "statistic": "s"})
    export.export(run, tmp_path / "model.safetensors")
    for path in (run, tmp_path / "model.safetensors"):
        sampler = ggcn.load(path)
        assert [grid.steps * grid.step_size for grid in sampler.grids] == pytest.approx([1.5, 1.75])
        more = sampler.with_settings(steps=10)
        assert [grid.step_size for grid in more.grids] == pytest.approx([0.15, 0.175])
        assert [grid.step_size * grid.steps for grid in more.with_settings(time=1.6).grids] == [1.6, 1.6]
        assert str(sampler.settings) == ""
    for damaged in ('{"time": "soon"}', "3", "{"):
        with pytest.raises(UserError, match="sampling settings"):
            ggcn.load(altered(tmp_path / "model.safetensors", "same", sampling=damaged))
    for misfit in ('{"time": [1, 2, 3]}', '{"time": [-1]}', '{"time": [NaN]}'):
        with pytest.raises(UserError, match="^time "):
            ggcn.load(altered(tmp_path / "model.safetensors", "same", sampling=misfit))


def test_an_exported_file_is_as_readable_as_others(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_weights_that_do_not_fit_are_one_sentence(file: Path, run: Path) -> None:
    whole = "same"
    with pytest.raises(UserError, match=r"energies in .* do not fit the config .*Missing key"):
        ggcn.load(altered(file))
    with pytest.raises(UserError, match=r"do not fit the config .*size mismatch for grids.0.levels.0.bias"):
        ggcn.load(altered(file, torch.zeros(3)))
    for name in ("config", "step"):
        with pytest.raises(UserError, match="was not written by tools/export.py"):
            ggcn.load(altered(file, whole, drop=name))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("width: 8", "width: 16", 1))
    with pytest.raises(UserError, match=r"step_00000005 do not fit .*restore the config") as error:
        ggcn.load(run)
    assert "\n" not in str(error.value)


def test_one_altered_byte_of_a_weight_is_noticed(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"model.safetensors is damaged.*export it again"):
        ggcn.load(file)


def test_a_file_has_one_step(file: Path) -> None:
    assert ggcn.load(file, step=5).metadata["step"] == "5"
    with pytest.raises(UserError, match="holds the weights of step 5, not of 4"):
        ggcn.load(file, step=4)


def test_a_tilde_stands_for_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    assert ggcn.load("~/model.safetensors").config.run == "tiny"


def test_a_seed_may_be_a_numpy_integer(run: Path) -> None:
    sampler = ggcn.load(run)
    assert torch.equal(sampler.sample(2, seed=np.int64(5)), sampler.sample(2, seed=5))
    assert sampler.sample(0).shape == (0, 3, 16, 16)


@pytest.fixture
def as_before() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_defaults_of_pytorch_do_not_matter(
    file: Path, run: Path, as_before: None, dtype: torch.dtype
) -> None:
    expected = ggcn.load(run).sample(3)
    torch.set_default_dtype(dtype)
    torch.set_default_device("meta")  # stands for any other device
    for path in (file, run):
        images = ggcn.load(path).sample(3)
        assert images.dtype == torch.float32
        assert torch.equal(images, expected)


def test_inference_mode_does_not_matter(run: Path) -> None:
    mask = torch.arange(16 * 16).view(16, 16) > 100
    expected = ggcn.load(run).sample(3)
    with torch.inference_mode():
        sampler = ggcn.load(run)
        images = sampler.sample(3)
        assert torch.equal(images, expected)
        assert trajectory(sampler, range(2), 0, [1, 2]).shape == (2, 2, 3, 16, 16)
        assert interpolate(sampler, range(1), 0, 3).shape == (1, 3, 3, 16, 16)
        assert inpaint(sampler, images, mask.clone(), 0, 0).shape == (3, 3, 16, 16)
        assert denoise(sampler, images, 0.2, 0, 0).shape == (3, 3, 16, 16)


def test_threads_share_a_sampler(run: Path) -> None:
    sampler = ggcn.load(run)
    before = {name: value.clone() for name, value in sampler.energies.state_dict().items()}
    expected = [sampler.sample(8, seed) for seed in range(3)]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda number: sampler.sample(8, number % 3), range(24)))
    assert all(torch.equal(images, expected[number % 3]) for number, images in enumerate(drawn))
    after = sampler.energies.state_dict()
    assert all(after[name].dtype == value.dtype for name, value in before.items())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_chain_does_not_change_the_network_while_it_runs(run: Path) -> None:
    energies = ggcn.load(run).energies
    met: list[Tensor] = []
    energies.grids[1].levels[0].register_forward_pre_hook(
        lambda layer, inputs: met.append(energies.grids[1].levels[0].weight)
    )
    energies.prepared(1)(torch.zeros(1, 3, 16, 16))
    assert met[0].dtype == torch.float32


def test_checkpoints_may_be_pruned_while_they_are_read(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", steps=(5, 10))
    newest, real = run / "checkpoints/step_00000010", torch.load

    def late(path: Path, **settings: object) -> object:
        if newest.exists():
            checkpoint.discard(newest)
        return real(path, **settings)

    monkeypatch.setattr(samplers.torch, "load", late)
    sampler = ggcn.load(run)
    assert sampler.folder is not None
    assert sampler.folder.name == "step_00000005"
    assert sampler.metadata["step"] == 5

    true_sum = files.sha256

    def pruned(path: Path) -> str:
        if path.name == "ema.pt" and "step_00000005" in str(path):
            trained(run, steps=(15,))
            checkpoint.discard(path.parent)
        return true_sum(path)

    monkeypatch.setattr(checkpoint.files, "sha256", pruned)
    result = checkpoint.newest_valid(run / "checkpoints")
    assert result is not None
    assert result.name == "step_00000015"


@pytest.mark.parametrize("content", ["[1, 2]", '{"step": 5}', '{"step": 5, "files": [1]}', "null"])
def test_a_meta_file_of_another_form_is_a_fault(run: Path, content: str) -> None:
    folder = run / "checkpoints/step_00000005"
    (folder / "meta.json").write_text(content)
    (folder / "COMPLETE").write_text(files.sha256(folder / "meta.json"))
    assert checkpoint.faults(folder) == "meta.json describes no files"
    assert not inspect_checkpoint.inspect(folder)
    (folder / "COMPLETE").write_bytes(b"\xff\xfe\x00")
    assert checkpoint.faults(folder) == "meta.json was altered"


@pytest.mark.parametrize("name", ["/etc/passwd", "../../config.yaml", "lanes/../../latest"])
def test_a_checkpoint_that_names_a_file_outside_is_refused(run: Path, name: str) -> None:
    folder = run / "checkpoints/step_00000005"
    facts = json.loads((folder / "meta.json").read_text())
    facts["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    seal(folder, json.dumps(facts))
    assert checkpoint.faults(folder) == "meta.json names a file outside"
    assert not inspect_checkpoint.inspect(folder)


VAST = f'{{"checkpoint": "step_00000005", "fid": 1{"0" * 400}}}'
"""a note of the best whose score no float can hold"""


def test_deep_nesting_in_a_meta_file_is_a_fault(run: Path) -> None:
    folder = run / "checkpoints/step_00000005"
    seal(folder, "[" * 100_000)
    assert checkpoint.faults(folder) == "meta.json describes no files"
    assert not inspect_checkpoint.inspect(folder)


def test_a_checkpoints_content_does_not_control_the_terminal(run: Path, capsys) -> None:
    folder = run / "checkpoints/step_00000005"
    facts = json.loads((folder / "meta.json").read_text())
    seal(folder, json.dumps(facts | {"engine": "\x1b[2Jplain\nstep 7", "\x1b[31m": 1}))
    assert inspect_checkpoint.inspect(folder)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2Jplain\\nstep 7" in shown


def seal(folder: Path, content: str) -> None:
    """Replaces meta.json of a checkpoint, as its writer could."""
    (folder / "meta.json").write_text(content)
    (folder / "COMPLETE").write_text(files.sha256(folder / "meta.json"))


def test_a_damaged_note_of_the_best_is_none(run: Path) -> None:
    root = run / "checkpoints"
    for content in (
        '{"checkpoint"',
        "",
        "[]",
        "3",
        '{"checkpoint": "step_00000005", "fid": "?"}',
        VAST,
        "[" * 100_000,
    ):
        (root / "best").write_text(content)
        assert checkpoint.best(root) is None
    assert checkpoint.record_best(root, 5, 7.5)
    assert checkpoint.best(root) == {"checkpoint": "step_00000005", "fid": 7.5}


def test_folders_that_only_look_like_checkpoints_do_not_count(run: Path) -> None:
    for name in ("step_7", "step_²", "step_", "step_000000009"):
        (run / "checkpoints" / name).mkdir()
    assert checkpoint.steps(run / "checkpoints") == [5]


def test_discarded_checkpoints_of_a_roll_back_can_be_inspected(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", steps=(5, 10))
    root = run / "checkpoints"
    checkpoint.record_best(root, 10, 3.0)
    checkpoint.archive(root / "step_00000010")
    assert [folder.name for folder in inspect_checkpoint.find(run)] == [
        "step_00000005",
        "left-step_00000010",
    ]
    left = root / "left-step_00000010"
    assert inspect_checkpoint.find(left) == [left]
    monkeypatch.chdir(left)
    assert inspect_checkpoint.find(Path(".")) == [left]
    assert json.loads((root / "best").read_text())["checkpoint"] == left.name


def test_a_sampler_is_of_the_checkpoint_it_was_read_from(run: Path) -> None:
    sampler = ggcn.load(run)
    checkpoint.discard(run / "checkpoints/step_00000005")
    assert isinstance(sampler, Sampler)
    assert sampler.metadata["data"] == "d"


def test_frozen_networks_learn_again_afterwards() -> None:
    _, upsamplers = build(compose([*TINY, "engine=plain"]))
    with frozen(upsamplers):
        assert not any(parameter.requires_grad for parameter in upsamplers.parameters())
    assert all(parameter.requires_grad for parameter in upsamplers.parameters())
