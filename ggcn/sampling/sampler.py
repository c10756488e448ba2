"""A trained model as a sampler."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ggcn.config.compose import load as load_config
from ggcn.config.grids import Grid, grids
from ggcn.config.schema import Config
from ggcn.distributed.lanes import Key
from ggcn.errors import UserError
from ggcn.models import Energies, Upsamplers, build
from ggcn.precision import set_numeric_flags
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir
from ggcn.sampling.draw import Particles, draw, initial_noise
from ggcn.sampling.noise import Noise, host_normal
from ggcn.sampling.settings import AMORTIZED, CHAIN, MODES, PerGrid, SamplerSettings, check_mode

WEIGHTS = "ema.pt"


class Sampler:
    """Draws images; image number i of a seed is the same whatever else is drawn, up to float rounding.

    Its networks take no gradient and are never changed, so threads may share it; no global random state is used.
    """

    settings = SamplerSettings()
    """what replaces the chain settings of the checkpoint and its config; see with_settings"""

    def __init__(
        self,
        config: Config,
        energies: Energies,
        upsamplers: Upsamplers,
        folder: Path | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """folder: the checkpoint's, or an exported file; metadata: its meta.json, or the file's own."""
        self.config, self.folder, self.metadata = config, folder, metadata or {}
        self.calibrated = {mode: SamplerSettings(time=calibrated_time(self.metadata, mode)) for mode in MODES}
        _ = self.grids  # raises what does not fit them
        self.energies = energies.eval().requires_grad_(False)
        self.upsamplers = upsamplers.eval().requires_grad_(False)
        self.device = next(energies.parameters()).device
        self.lane_width = config.train.batch // config.lanes

    def with_settings(
        self,
        steps: PerGrid = None,
        time: PerGrid = None,
        temperature: PerGrid = None,
        noise: PerGrid = None,
        mode: str | None = None,
    ) -> "Sampler":
        """A sampler of the same networks with other chains; each setting but mode is a number, or one per grid.

        mode: "chain", the default, starts chains from the linear maps' images; "amortized" from those of the
        up-samplers, which have learned where these chains end, so that short ones remain (steps=0: none).
        steps: Langevin steps. time: steps * step size; by default what was calibrated when the checkpoint was
        written, or else the config's. Models with model.chain.time keep their time when they take other steps, and
        others their step size. noise: standard deviation of what is added to
        chain starts, 0 by default. Raises UserError for numbers that are out of range or do not fit the grids.
        """
        other = copy(self)
        other.settings = self.settings.updated(SamplerSettings(mode, steps, time, temperature, noise))
        check_mode(other.settings.mode)
        if other.settings.mode == AMORTIZED and not self.amortizable:
            raise UserError(
                f"mode amortized is for models whose up-samplers learn from chains that start below them "
                f"(model.chain.init_from=base, as in model=ggcn); those of {self.config.model.name} start from the "
                "up-samplers in every mode"
            )
        _ = other.grids  # raises what there is to raise now
        return other

    @torch.inference_mode(False)  # chains differentiate energies
    def draw(self, first: int, count: int, seed: int) -> Particles:
        """Images number first to first + count of `seed`, with chain starts and all grids.

        The number drawn is rounded up to whole lanes; a lane norm looks at that many samples together.
        """
        numbers = range(first, first + -(-count // self.lane_width) * self.lane_width)
        keys: list[tuple[Key, ...]] = [(seed, "sample", number) for number in numbers]
        hidden = self.config.model.hidden_chain
        noise = Noise(keys, self.device)
        return draw(self.energies, self.upsamplers, self.grids, hidden, self.initial(keys), noise)

    def initial(self, keys: Sequence[tuple[Key, ...]]) -> Tensor:
        """What the coarsest grid starts from, by one key per sample: z, colours, or noise."""
        if colours := self.upsamplers.colours:
            return colours.colours(host_normal(keys, len(keys), self.energies.shape[0]).to(self.device))
        return initial_noise(self.config.model, keys, 1, self.energies.shape, self.device)

    @property
    def amortizable(self) -> bool:
        """Whether chains start below the up-samplers, which may take the chains' place in mode "amortized"."""
        return self.config.model.chain.init_from == "base" and bool(self.upsamplers.learned)

    @property
    def grids(self) -> list[Grid]:
        """The grids with this sampler's settings; chains that had a replay buffer in training run longer here by
        default, since they begin in noise."""
        first, *rest = grids(self.config.model)
        if self.config.model.chain_init == "replay_buffer":
            first = replace(first, steps=first.steps * self.config.model.replay_buffer.cold_start_factor)
        settings = self.calibrated[self.settings.mode or CHAIN].updated(self.settings)
        return settings.apply([first, *rest], keep_time=self.config.model.chain.time > 0)

    def batches(self, count: int, seed: int = 0, batch: int = 64, first: int = 0) -> Iterator[Tensor]:
        """Images number first to first + count in batches of at most about `batch`, [n, channels, size, size], on the
        CPU. `first` is a multiple of the lane width."""
        batch = max(batch // self.lane_width, 1) * self.lane_width
        for begin in range(first, first + count, batch):
            size = min(batch, first + count - begin)
            yield self.draw(begin, size, seed).ends[-1][:size].cpu()

    def sample(
        self,
        count: int,
        seed: int = 0,
        batch: int = 64,
        *,
        steps: PerGrid = None,
        time: PerGrid = None,
        temperature: PerGrid = None,
        noise: PerGrid = None,
        mode: str | None = None,
    ) -> Tensor:
        """`count` images [count, channels, size, size], about [-1, 1], on the CPU. The settings of the chains are
        those of `with_settings`."""
        sampler = self.with_settings(steps, time, temperature, noise, mode)
        shape = (0, self.energies.shape[0], *[self.grids[-1].size] * 2)
        empty = torch.empty(shape, dtype=torch.float32, device="cpu")
        return torch.cat([empty, *sampler.batches(count, seed, batch)])

    def inpaint(self, images: Tensor, mask: Tensor, seed: int = 0, batch: int = 64) -> Tensor:
        """Images with their unknown pixels filled in by chains that see the known ones, which stay as they are.

        images: [n, channels, size, size] in [-1, 1]; mask: bool [size, size], True where a pixel is known. Returned:
        as `images`, float32 on the CPU. Raises UserError for other shapes, and when nothing is known or unknown.
        """
        from ggcn.applications import batched

        return batched.inpaint(self, images, mask, seed, batch)

    def denoise(
        self, images: Tensor, std: float, seed: int = 0, batch: int = 64, weight: float | None = None
    ) -> Tensor:
        """Images without noise of standard deviation `std` (in the units of pixels, which lie in [-1, 1]).

        images: [n, channels, size, size]. weight: of the energy against the distance to `images`; by default
        estimated for each image. Returned: as `images`, float32 on the CPU. Raises UserError for other shapes and
        numbers out of range.
        """
        from ggcn.applications import batched

        return batched.denoise(self, images, std, seed, batch, weight)

    def energy(self, images: Tensor, batch: int = 64) -> Tensor:
        """Energies E of images [n, channels, size, size] in [-1, 1] on every grid, coarsest first: float32 [n, grids]
        on the CPU, computed in fp32; low is likely. Only values of one grid of one model compare. Raises UserError for
        other shapes."""
        from ggcn.applications import batched

        return batched.energy(self, images, batch)

    def interpolate(self, count: int = 8, rows: int = 1, seed: int = 0, batch: int = 64) -> Tensor:
        """Row r: `count` images whose z go along the great circle from that of image 2r of a seed to that of image
        2r + 1, with the same chain noise: float32 [rows, count, channels, size, size] on the CPU. Raises UserError for
        a model without z."""
        from ggcn.applications import batched

        return batched.interpolate(self, count, rows, seed, batch)


def calibrated_time(metadata: Mapping[str, Any], mode: str) -> list[float] | None:
    """The chain time per grid in a mode that a checkpoint's meta.json or an exported file's metadata tell, if they do.
    Raises UserError when they are damaged."""
    if "sampling" not in metadata:
        return None
    key = {CHAIN: "time", AMORTIZED: "amortized_time"}[mode]
    try:
        if mode == AMORTIZED and key not in metadata["sampling"]:  # of an earlier version
            return None
        return [float(time) for time in metadata["sampling"][key]]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError("the sampling settings of this model are damaged; take another checkpoint") from None


def check_finite(values: Tensor, sampler: Sampler) -> None:
    """Raises UserError unless all of what a sampler made is finite."""
    if not bool(values.isfinite().all()):
        raise UserError(
            f"chains of {sampler.folder} did not stay finite; take another checkpoint with --step, "
            "or train again with a smaller model.chain.step_size"
        )


def load(run: str | Path, step: int | None = None, device: str | torch.device = "cpu") -> Sampler:
    """The sampler of a run's newest valid checkpoint, or of the one at `step`, from averaged weights.

    Sets this process's numeric flags. Raises UserError when `run` is no run directory, has no such checkpoint, or its
    config is not the checkpoint's.
    """
    set_numeric_flags()
    run_dir = RunDir(Path(run))
    config = load_config(run_dir.config)
    config.data.allow_pipe = False  # the run may come from someone else; only the caller may allow commands
    folder, weights, metadata = _read_checkpoint(run_dir, step)
    return build_sampler(config, weights, folder, device, metadata)


def _read_checkpoint(
    run_dir: RunDir, step: int | None, retries: int = 3
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A checkpoint's folder, averaged weights and meta.json; of another checkpoint where the run prunes this
    one while it is read."""
    folder = _choose_checkpoint(run_dir, step)
    try:
        weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        return folder, weights, _checked(checkpoint.meta(folder), folder)
    except OSError:
        if folder.exists() or not retries:
            raise
    return _read_checkpoint(run_dir, step, retries - 1)


def _checked(metadata: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's meta.json. Raises UserError where it lacks the step."""
    step = metadata.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise UserError(f"{folder / 'meta.json'} names no step; take another checkpoint with --step")
    return metadata


def build_sampler(
    config: Config,
    weights: Mapping[str, Mapping[str, Tensor]],
    path: Path,
    device: str | torch.device,
    metadata: dict[str, Any],
) -> Sampler:
    """The sampler of a config with the weights read from `path`: "energies" and "upsamplers", by name.

    In float32, whatever PyTorch's default is. Raises UserError when they do not fit.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        energies, upsamplers = build(config)
        for name, module in (("energies", energies), ("upsamplers", upsamplers)):
            try:
                module.float().load_state_dict(weights[name])
            except (KeyError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[-1].strip()
                raise UserError(
                    f"the {name} in {path} do not fit the config that comes with them ({reason}); restore the config"
                ) from None
        return Sampler(config, energies.to(device), upsamplers.to(device), path, metadata)


def _choose_checkpoint(run_dir: RunDir, step: int | None) -> Path:
    if step is not None:
        return checkpoint.at_step(run_dir.checkpoints, step)
    folder = checkpoint.newest_valid(run_dir.checkpoints)
    if folder is None:
        raise UserError(f"{run_dir.path} has no checkpoint yet; train it first")
    return folder
