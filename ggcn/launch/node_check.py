"""A short check of every node before the ranks of a job start: its devices, arithmetic, cache folder and clock.

Each rank checks its own device, and the first one of a node the rest. The ranks exchange what they found, so that one
start finds all nodes that fail, and they end together.
"""

import faulthandler
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import torch

from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import TransientError, UserError
from ggcn.launch import node_errors
from ggcn.run.directory import RunDir

LIMIT_S = 120
"""seconds after which a check that hangs ends its rank, with stack traces in the job's log"""
SIDES = {"cpu": 512, "cuda": 4096}
"""sides of the matrices that are multiplied, by the kind of device"""
SLOWER = 4.0
"""multiple of the median time of a product from which a node is too slow"""
SLOW_S = {"cpu": 0.1, "cuda": 0.02}
"""seconds of a product up to which no node is too slow, however fast the others are"""
CLOCK_S = 60.0
"""seconds by which a node's clock may differ from the best one, measured against the run's file system"""
Report = dict[str, Any]
"""what a rank found: node, device, fault (a sentence or None), product_s, clock_s"""


def node_name() -> str:
    """The name of this node, as SLURM has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check(
    config: Config, run: RunDir, rank_info: RankInfo, choose: Callable[[], torch.device]
) -> torch.device:
    """Returns this rank's device, by `choose`, once the nodes of all ranks have passed.

    Raises TransientError, on every rank, with the nodes that fail, which rank 0 leaves in logs/ for the batch script;
    UserError where all of them fail, since then no node is at fault.
    """
    device, report = None, {"node": node_name(), "device": "cpu", "fault": None, "product_s": 0.0}
    with _ended_when_it_hangs():
        try:
            device = choose()
            report |= {"device": device.type, **_measure(config, run, device, rank_info.local_rank == 0)}
        except UserError as error:
            report["fault"] = str(error)
        except (RuntimeError, OSError) as error:
            report["fault"] = " ".join(str(error).split("\n")[0].split())
    nodes, failed = _exchange(report, rank_info, config.cluster.timeout_s)
    if len(failed) == nodes:
        raise UserError(next(iter(failed.values())))
    if failed:
        sentence = "; ".join(f"{node} failed its check: {fault}" for node, fault in failed.items())
        if rank_info.rank == 0:
            node_errors.write(run, failed)
        raise TransientError(sentence)
    assert device is not None
    return device


def judge(reports: list[Report]) -> dict[str, str]:
    """{node: what it failed}, from what all ranks report."""
    failed: dict[str, str] = {}
    for report in reports:
        if report["fault"]:
            failed.setdefault(report["node"], report["fault"])
    passed = [report for report in reports if report["node"] not in failed]
    usual = median([report["product_s"] for report in passed]) if passed else 0.0
    clocks = [report["clock_s"] for report in passed if report.get("clock_s") is not None]
    best = min(clocks, key=abs, default=0.0)
    for report in passed:
        took, clock = report["product_s"], report.get("clock_s")
        if took > max(SLOW_S[report["device"]], SLOWER * usual):
            failed.setdefault(
                report["node"], f"a matrix product takes {took:.3g} s, and {usual:.3g} s on the others"
            )
        if clock is not None and abs(clock - best) > CLOCK_S:
            failed.setdefault(
                report["node"], f"its clock differs by {abs(clock - best):.0f} s from the others'"
            )
    return failed


@contextmanager
def _ended_when_it_hangs() -> Iterator[None]:
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _measure(config: Config, run: RunDir, device: torch.device, is_first: bool) -> Report:
    """The times of a report. Raises UserError or OSError for what fails."""
    found: Report = {"product_s": _product_s(device)}
    if not is_first:
        return found
    if config.data.cache_dir:
        _touch(Path(config.data.cache_dir))
    return found | {"clock_s": _touch(run.logs)}


def _product_s(device: torch.device) -> float:
    """Seconds of a matrix product, the best of some. Raises UserError when it is wrong: whole numbers so small have an
    exact product in float32, which is compared through its product with a vector."""
    side = SIDES[device.type]
    index = torch.arange(side, device=device)
    left = ((index[:, None] * 31 + index * 17) % 13 - 6).float()
    right = ((index[:, None] * 7 + index * 29) % 11 - 5).float()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        product = left @ right
        probe = product[-1, -1].item()  # waits for the device
        times.append(time.perf_counter() - began)
    vector = (index % 3).double()
    expected = left.double() @ (right.double() @ vector)
    if not torch.equal(product.double() @ vector, expected) or probe != probe:
        raise UserError(f"a matrix product on {device} is wrong")
    return min(times)


def _touch(folder: Path) -> float:
    """Writes and removes a file; returns by how many seconds the clock of its file system is ahead. Raises UserError
    with the folder that cannot be written."""
    path = folder / f".check-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"checked")
        ahead = path.stat().st_mtime - time.time()
        path.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from None
    return ahead


def _exchange(report: Report, rank_info: RankInfo, timeout_s: int) -> tuple[int, dict[str, str]]:
    """The number of nodes, and {node: what it failed}, equal on all ranks."""
    store = process_group.connect(rank_info, timeout_s)
    store.set(f"check/{rank_info.rank}", json.dumps(report))
    if rank_info.rank == 0:
        reports = [json.loads(store.get(f"check/{rank}")) for rank in range(rank_info.world)]
        nodes = len({each["node"] for each in reports})
        store.set("checked", json.dumps([nodes, judge(reports)]))
    nodes, failed = json.loads(store.get("checked"))
    if failed:  # rank 0 hosts the store, and ends last
        _leave(store, rank_info)
    return nodes, failed


def _leave(store: torch.distributed.Store, rank_info: RankInfo) -> None:
    left, end = store.add("check/left", 1), time.monotonic() + 5
    while rank_info.rank == 0 and left < rank_info.world and time.monotonic() < end:
        time.sleep(0.01)
        left = store.add("check/left", 0)
