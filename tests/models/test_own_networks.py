"""Energies and up-samplers from user code: they train, their code is copied, mistakes are sentences."""

import shutil
import sys
from pathlib import Path

import pytest
import shard_files
import torch
from helpers import TINY, call
from torch import nn

import ggcn
from ggcn.config.compose import compose
from ggcn.errors import UserError
from ggcn.models.build import build
from ggcn.models.energy import ConvEnergy, LevelEnergy
from ggcn.run import own_code
from ggcn.testing import check_energy, check_upsampler

SOURCE = '''
import torch
from torch import nn


class Ridge(nn.Module):
    """f(x) = sum of soft-plus responses; an energy in four lines."""

    def __init__(self, size, channels, config):
        super().__init__()
        self.filters = nn.Conv2d(channels, config.width, 5, padding=2)

    def forward(self, x):
        return nn.functional.silu(self.filters(x)).float().mean((1, 2, 3)) * 10


class Shift(nn.Module):
    """One image per up-sampler, learned."""

    def __init__(self, source, target, channels, config):
        super().__init__()
        self.image = nn.Parameter(torch.zeros(channels, target, target))

    def forward(self, inputs):
        return self.image.expand(len(inputs), *self.image.shape)


class NeedsMore(nn.Module):
    def __init__(self, size, channels, config, depth):
        super().__init__()


number = 7
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which no other test imports."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def test_a_run_trains_own_networks_and_keeps_a_copy(module: str, tmp_path: Path) -> None:
    shard_files.build(tmp_path / "shards", [32], size=16)
    base = [*TINY, "engine=plain", f"data.shards={tmp_path}/shards", f"paths.runs={tmp_path}/runs", "run=own"]
    kinds = [f"model.energy.kind={module}:Ridge", f"model.upsampler.kind={module}:Shift"]
    config = compose([*base, *kinds, "train.steps=2"])
    run = ggcn.train(config)
    assert sorted(path.name for path in (run.path / "own").iterdir()) == [f"{module}.py"]
    before = ggcn.load(run).sample(2)
    assert before.shape == (2, 3, 16, 16)
    assert '"own": {"' in (run.path / "submissions.jsonl").read_text()
    del sys.modules[module]
    (tmp_path / f"{module}.py").unlink()
    config.train.steps = 3
    assert ggcn.train(config).finished  # from the run's own copy
    del sys.modules[module]
    with pytest.raises(UserError, match=rf"there is no module {module} on Python's path.*RUN/own"):
        ggcn.load(run)


@pytest.mark.slow
def test_ranks_import_a_module_of_the_folder_where_the_launcher_started(module: str, tmp_path: Path) -> None:
    shard_files.build(tmp_path / "shards", [32], size=16)
    base = [
        *TINY,
        f"data.shards={tmp_path}/shards",
        f"paths.runs={tmp_path}/runs",
        "run=own",
        "train.steps=2",
    ]
    kinds = [f"model.energy.kind={module}:Ridge", f"model.upsampler.kind={module}:Shift"]
    done = call("cluster/launch.py", "-m", "local", *base, *kinds)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_one_sentence(module: str) -> None:
    wrong = {
        "nosuch_module:Ridge": "there is no module nosuch_module on Python's path",
        f"{module}:Rigde": "has no class Rigde",
        f"{module}:number": "number is no subclass of torch.nn.Module",
        f"{module}:NeedsMore": r"is built by NeedsMore\(size, channels, config\), which failed: .*depth",
    }
    for kind, sentence in wrong.items():
        config = compose([*TINY, f"model.energy.kind={kind}"])
        with pytest.raises(UserError, match=sentence):
            build(config)
    with pytest.raises(UserError, match="is none of convnet, frame, MODULE:CLASS"):
        compose(["model.energy.kind=ridge"])


def test_a_class_of_a_notebook_or_script_is_named_by_its_main_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "Sound", type("Sound", (Broken,), {}), raising=False)
    config = compose([*TINY, "model.energy.kind=__main__:Sound"])
    own_code.save(config, tmp_path)
    assert type(build(config)[0].grids[1]).__name__ == "Sound"
    assert not (tmp_path / "own").exists()


def test_a_changed_module_is_copied_again_with_a_warning(
    module: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose([*TINY, f"model.energy.kind={module}:Ridge"])
    own_code.save(config, tmp_path / "run")
    (tmp_path / f"{module}.py").write_text(SOURCE + "\n# better\n", encoding="utf-8")
    own_code.save(config, tmp_path / "run")
    assert f"{module}.py changed since" in caplog.text
    assert "# better" in (tmp_path / "run/own" / f"{module}.py").read_text()
    shutil.rmtree(tmp_path / "run")


class Broken(nn.Module):
    """An energy with one fault."""

    fault = ""

    def __init__(self, size: int, channels: int, config: object) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if self.fault == "batch" else nn.Identity()
        if self.fault == "unused":
            self.extra = nn.Parameter(torch.zeros(3))
        self.scale = float(torch.rand(())) if self.fault == "state" else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.layer(x))
        hidden = hidden if self.fault == "linear" else nn.functional.silu(hidden)
        hidden = torch.relu(self.layer(x)) if self.fault == "kink" else hidden
        if self.fault == "dropout":
            hidden = nn.functional.dropout(hidden)
        if self.fault == "shape":
            return hidden.float().mean((2, 3))
        return (hidden if self.fault == "type" else hidden.float()).mean((1, 2, 3)) * self.scale


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("batch", "other|another value"),
        ("unused", "extra is not used"),
        ("dropout", "other values when it is called again"),
        ("shape", r"has the shape \[5, 8\]; it must be \[5\]"),
        ("type", "is torch.bfloat16; sum in float32"),
        ("state", "after it was saved and restored"),
    ],
)
def test_a_faulty_energy_is_told_its_fault(fault: str, sentence: str) -> None:
    faulty = type("Faulty", (Broken,), {"fault": fault})
    with pytest.raises(AssertionError, match=sentence):
        check_energy(faulty)


def test_networks_of_the_house_conform(module: str) -> None:
    check_energy(type("Sound", (Broken,), {}))
    check_energy(ConvEnergy)
    check_energy(LevelEnergy, size=32)
    check_energy(f"{module}:Ridge")
    check_upsampler(f"{module}:Shift")
    check_upsampler(f"{module}:Shift", source=None)
