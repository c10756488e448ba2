"""Runs the checks that need a GPU, in one command:

    python tools/check_gpu.py --out check

Every check is a command of this project and writes its log to OUT; report.md lists the results.
The exit code is 1 when one failed. A machine that reaches no registry takes its packages from a folder that
`pip download` filled elsewhere:

    pip download --dest wheels --no-deps deepspeed submitit webdataset hydra-core omegaconf antlr4-python3-runtime ...
    python tools/check_gpu.py --wheels wheels --out check
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STEPS, HALF = 40, 20
"""of the runs that are compared; HALF is where one of them is stopped and resumed"""


class Check:
    """The checks and their results."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.rows: list[str] = []
        self.failed = False

    def part(self, name: str, work: Callable[[], str]) -> None:
        """Runs one check, which fails by raising an exception."""
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        try:
            result = work()
        except Exception as error:  # the other checks run nevertheless
            result, self.failed = f"**failed**: {' '.join(str(error).split())[-300:]}", True
        self.rows.append(f"| {name} | {time.monotonic() - start:.0f} | {result} |")
        self.write()

    def write(self) -> None:
        """report.md, so far."""
        from tools.benchmarks.report import header

        head = [header(), "", "| part | s | result |", "|---|---|---|"]
        (self.out / "report.md").write_text("\n".join([*head, *self.rows]) + "\n", encoding="utf-8")

    def call(self, name: str, *command: object) -> None:
        """Runs one of the project's scripts; raises RuntimeError with the end of its output."""
        log = self.out / f"{name}.log"
        argv = [sys.executable, *map(str, command)]
        with log.open("w", encoding="utf-8") as out:
            code = subprocess.run(
                argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False
            ).returncode
        if code:
            raise RuntimeError(f"exit code {code}: {log.read_text(encoding='utf-8')[-300:]}")

    def train(self, name: str, steps: int, *overrides: object) -> Path:
        """A run on the random images, to `steps`; returns its directory."""
        runs = self.out / "runs"
        settings = [f"run={name}", f"paths.runs={runs}", f"data.shards={self.out / 'shards'}", "log.every=1"]
        settings.append("model.chain.every=4")  # chains and up-samplers in every fourth of the few steps
        one_rank = ["-m", "local", "cluster.ranks=1", "data.workers=1", f"train.steps={steps}"]
        self.call(f"train-{name}-{steps}", "cluster/launch.py", *one_rank, *settings, *overrides)
        return runs / name


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="installs the packages from here first")
    parser.add_argument("--device", default="cuda", help="cpu tests the script itself")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.wheels:
        install = ["-m", "pip", "install", "--no-index", "--no-deps", *sorted(args.wheels.glob("*"))]
        subprocess.run([sys.executable, *map(str, install)], check=True)
    from ggcn.precision import set_numeric_flags  # torch, which --wheels may have just installed

    set_numeric_flags()
    check, device = Check(args.out), args.device
    check.part("shards of random images", partial(shards, check))
    check.part("noise on the device", partial(noise, device))
    check.part("chains in bf16 and fp32", partial(precision, device))
    check.part("the plain engine", partial(plain, check))
    for engine in ("engine.zero_stage=0", "engine.zero_stage=1", "engine.zero_stage=2"):
        check.part(f"{engine} next to plain", partial(engines, check, engine))
    check.part("stopped and resumed, bit for bit", partial(resume, check))
    for size in (32, 64, 128):
        check.part(f"a Langevin step at {size} px", partial(bench, check, "chain", size, device))
    check.part("a training step", partial(bench, check, "step", None, device))
    print((args.out / "report.md").read_text(encoding="utf-8"))
    return int(check.failed)


def shards(check: Check) -> str:
    """Random images to train on."""
    import numpy as np
    from PIL import Image

    folder = check.out / "images"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(256):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.png")
    check.call("shards", "tools/make_shards.py", folder, check.out / "shards", "--size", 32)
    return "256 images"


def noise(device: str) -> str:
    """Noise is N(0, 1), equal for equal keys and different for others."""
    import torch

    from ggcn.sampling.noise import Noise

    def drawn(lane: int) -> torch.Tensor:
        return Noise([(0, "chain", "lane", lane)], torch.device(device)).normal(1, 2**22)

    first = drawn(0)
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first, drawn(1))
    mean, square = first.mean().item(), first.square().mean().item()
    kurtosis = first.double().pow(4).mean().item()
    assert abs(mean) < 3e-3
    assert abs(square - 1) < 5e-3
    assert abs(kurtosis - 3) < 0.03
    return f"mean {mean:.1e}, variance {square:.4f}, kurtosis {kurtosis:.3f}"


def precision(device: str) -> str:
    """The distance between a default model's chain ends in bf16 and fp32, relative to the chains' displacement."""
    import torch

    from ggcn.config.compose import compose
    from ggcn.config.grids import grids
    from ggcn.models import build
    from ggcn.sampling.langevin import langevin
    from ggcn.sampling.noise import Noise

    config = compose([])
    energies = build(config)[0].to(device).requires_grad_(False)
    for name, weight in energies.named_parameters():
        if ".linear." in name:
            torch.nn.init.normal_(weight, std=0.05)  # an energy that moves its chains
    grid, where = grids(config.model)[-1], torch.device(device)
    start = Noise([(0, "start")], where).normal(64, 3, grid.size, grid.size) * 0.3
    ends = []
    for kind in ("fp32", "bf16"):
        energies.chain_precision = kind
        ends.append(
            langevin(energies.prepared(len(energies.grids) - 1), start, grid, Noise([(0,)], where))[0]
        )
    difference = ((ends[0] - ends[1]).norm() / (ends[0] - start).norm()).item()
    assert difference < 0.05, f"{difference:.3f}"
    return f"{difference:.4f} of the way"


def plain(check: Check) -> str:
    """The run that the other engines are compared with."""
    first, *_, last = losses(check.train("plain", HALF, "engine=plain", "engine.precision=fp32"))
    assert math.isfinite(last)
    return f"energy loss {first:.4f} to {last:.4f} in {HALF} steps"


def engines(check: Check, engine: str) -> str:
    """The largest difference of an energy loss from the plain engine's in fp32."""
    name = engine.replace(".", "-").replace("=", "-")
    run = check.train(name, HALF, engine, "engine.precision=fp32")
    difference = max(abs(a - b) for a, b in zip(losses(run), losses(check.out / "runs/plain"), strict=True))
    assert difference < 1e-3, f"{difference:.2e}"
    return f"energy losses differ by at most {difference:.1e} in {HALF} steps"


def losses(run: Path) -> list[float]:
    """The energy loss of every step."""
    return [
        json.loads(line)["energy_loss"]
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def resume(check: Check) -> str:
    """A stopped and resumed run ends with the same tensors as an uninterrupted one."""
    full = files(check.train("full", STEPS), STEPS)
    check.train("resumed", HALF)
    resumed = files(check.train("resumed", STEPS), STEPS)
    differ = [name for name in full if full[name] != resumed[name]]
    assert not differ, f"{', '.join(differ)} differ"
    return f"{len(full)} files of tensors equal"


def files(run: Path, step: int) -> dict[str, str]:
    """sha256 of a checkpoint's tensor files."""
    meta = json.loads((run / f"checkpoints/step_{step:08d}/meta.json").read_text(encoding="utf-8"))
    return {name: entry["sha256"] for name, entry in meta["files"].items() if name.endswith(".pt")}


def bench(check: Check, what: str, size: int | None, device: str) -> str:
    """tools/bench.py on the device; its tables are written next to the report."""
    name = f"{what}-{size}" if size else what
    options = ["--sizes", size, "--device", device] if what == "chain" else []
    check.call(name, "tools/bench.py", what, *options, "--out", check.out / f"{name}.md")
    rows = [
        line
        for line in (check.out / f"{name}.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    row_name = "this project, bf16" if what == "chain" else "chains and learning"
    return "".join(row for row in rows if row_name in row).replace("|", ",").strip(", ") + f"; {name}.md"


if __name__ == "__main__":
    raise SystemExit(main())
