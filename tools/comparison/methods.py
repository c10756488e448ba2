"""What tools/compare.py compares: presets of this project, methods of other families, and the fitted start alone."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ggcn.errors import UserError
from ggcn.evaluation import samples
from ggcn.evaluation.images import to_bytes
from ggcn.sampling.sampler import Sampler, load

ROOT = Path(__file__).resolve().parents[2]
FAMILY = ("ggcn", "ggcn_contrastive", "coopnets", "wgcn", "gcn", "shortrun", "igebm")
"""presets of configs/model"""
RIVALS = {
    "dcgan": ("gan", ("--loss", "dcgan")),
    "wgan-gp": ("gan", ("--loss", "wgan-gp")),
    "flow-matching": ("flow_matching", ("--solvers", "heun-25,euler-100")),
}
"""scripts of tools/benchmarks that train a method and draw its samples, with their flags"""
FITTED_START = "fitted-start"
"""ggcn's linear maps without chains and networks: what is there before the first step"""
METHODS = (*FAMILY, *RIVALS, FITTED_START)


@dataclass(frozen=True)
class Job:
    """One training of one method."""

    name: str
    method: str
    changes: tuple[str, ...]
    """settings that are not the method's own"""
    grids: list[int]
    """of a preset"""
    shards: Path
    folder: Path
    steps: int
    seed: int
    count: int
    size: int

    def command(self) -> list[str]:
        """The command that trains it; a rival's also draws the samples."""
        return self._rival() if self.method in RIVALS else self._launch()

    def _rival(self) -> list[str]:
        script, flags = RIVALS[self.method]
        numbers = {"steps": self.steps, "seed": self.seed, "count": self.count, "size": self.size}
        words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
        start = [sys.executable, str(ROOT / f"tools/benchmarks/{script}.py"), str(self.shards)]
        changed = [word for change in self.changes for word in f"--{change}".split("=", 1)]
        return [*start, *flags, *changed, *words, "--out", str(self.samples)]

    def _launch(self) -> list[str]:
        settings = {
            "experiment": "compare",
            "model": "ggcn" if self.method == FITTED_START else self.method,
            "model.grids": self.grids,
            "run": self.folder.name,
            "paths.runs": self.folder.parent,
            "data.shards": self.shards.resolve(),
            "seed": self.seed,
            "train.steps": self.steps,
        }
        start = [sys.executable, str(ROOT / "cluster/launch.py"), "-m", "local"]
        return [*start, *(f"{key}={value}" for key, value in settings.items()), *self.changes]

    @property
    def samples(self) -> Path:
        """Where a rival writes its samples."""
        return self.folder.with_suffix(".samples.pt")

    def draw(self) -> dict[str, Tensor]:
        """uint8 images [count, 3, size, size] of the trained model, from averaged weights, by the name of their row.
        A rival that samples in several ways has several."""
        if self.method in RIVALS:
            drawn = torch.load(self.samples, weights_only=True)
            if isinstance(drawn, Tensor):
                return {self.name: drawn}
            return {f"{self.name} {solver}": images for solver, images in drawn.items()}
        sampler = load(self.folder)
        if self.method == FITTED_START:  # all of its seeds learn the same maps, so the samples have the seed
            return {self.name: fitted_start(sampler, self.count, self.seed)}
        return {self.name: samples.draw_samples(sampler, self.count, seed=0).ends}


def fitted_start(sampler: Sampler, count: int, seed: int) -> Tensor:
    """uint8 images [count, c, size, size]: z ~ N(0, I) through the fitted linear maps of all grids."""
    images = sampler.initial([(seed, "sample", number) for number in range(count)])
    for number in range(len(sampler.grids)):
        images = sampler.upsamplers.base(number, images)
    return to_bytes(images.cpu())


def check_method(method: str) -> None:
    """Raises UserError for a method that there is not."""
    if method not in METHODS and not (ROOT / f"configs/model/{method}.yaml").exists():
        raise UserError(f"there is no method {method}; choose from {', '.join(METHODS)}")
