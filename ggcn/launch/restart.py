"""Where the ranks of a job start again within its allocation, after a crash or the failure of a node. Imports no torch.

The batch script passes what SLURM knows: GGCN_ALLOCATION, the nodes of the job when it started; GGCN_NODES, those that
it still has; GGCN_USED, those of the attempt; GGCN_MESSAGES, what srun printed; all of them after a failure only.
"""

import os
import re
import time
from typing import NamedTuple

from ggcn import environment
from ggcn.config.schema import Config
from ggcn.config.validation import acceptable_nodes
from ggcn.run.event_log import Event

LEAST_S = 120
"""seconds that must be left between a start and the signal before the time limit"""
SUSPECT = 2
"""attempts that must name a node as their cause before it is left out"""


_NODE_FAILURE = re.compile(r"[Ll]aunch .*?failed on node (\S+?):|Node failure on (\S+)")


class Restart(NamedTuple):
    """A start within the allocation."""

    nodes: list[str]
    """the nodes of the ranks; empty: the allocation does not suffice"""
    left_out: list[str]
    """nodes of the allocation that failed, or that several attempts name as their cause"""


def lost_nodes(events: list[Event]) -> list[str]:
    """The nodes of this attempt that SLURM took away, or on which it could start no rank."""
    before, now = _names("GGCN_ALLOCATION"), _names("GGCN_NODES")
    if not now:
        return []
    used = _names("GGCN_USED") or before[: environment.integer("SLURM_NNODES") or len(before)]
    known = _left_out(events)
    gone = [node for node in before if node not in now]
    named = [pair[0] or pair[1] for pair in _NODE_FAILURE.findall(_messages())]
    return [node for node in dict.fromkeys([*gone, *named]) if node in used and node not in known]


def cause() -> str | None:
    """The node whose task ended first of its own, by srun's messages; None where they name none."""
    match = re.search(r"error: (\S+): tasks? [\d,-]+: (?!Terminated)", _messages())
    return match[1] if match else None


def choose(config: Config, events: list[Event], failed: list[str], now: str | None) -> Restart:
    """The nodes of the next start: not those that `failed` now or before, nor, where the others suffice, those that
    SUSPECT attempts name, this one naming `now`. `events`: of the job."""
    nodes = _names("GGCN_NODES")
    if not nodes or not _time_is_left():
        return Restart([], failed)
    broken = {*failed, *_left_out(events, hard=True)}
    named = [event.get("cause") for event in events if event["event"] == "end"] + [now]
    healthy = [node for node in nodes if node not in broken]
    trusted = [node for node in healthy if named.count(node) < SUSPECT]
    for candidates in (trusted, healthy):
        for size in acceptable_nodes(config):
            if size <= len(candidates):
                chosen = candidates[:size]
                suspects = [node for node in healthy if node not in candidates]
                return Restart(chosen, sorted({*broken, *suspects}))
    return Restart([], sorted(broken))


def _left_out(events: list[Event], hard: bool = False) -> set[str]:
    """The nodes of this allocation that earlier attempts left out; `hard`: because they failed."""
    restarts = environment.integer("SLURM_RESTART_COUNT") or 0
    ends = [event for event in events if event["event"] == "end" and event.get("restart") == restarts]
    return {node for end in ends for node in end.get("failed" if hard else "left_out") or ()}


def _time_is_left() -> bool:
    end, lead_s = environment.seconds("GGCN_JOB_END"), environment.seconds("GGCN_LEAD_S") or 0.0
    return end is None or end - time.time() > lead_s + LEAST_S


def _names(variable: str) -> list[str]:
    return [name for name in os.environ.get(variable, "").split(",") if name]


def _messages() -> str:
    return os.environ.get("GGCN_MESSAGES", "")
