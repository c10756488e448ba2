"""The file in logs/ in which rank 0 tells the batch script which nodes failed their check. Imports no torch."""

import json

from ggcn.errors import TransientError
from ggcn.launch import rank_errors
from ggcn.run.directory import RunDir

NAME = "nodes.failed"


def write(run: RunDir, failed: dict[str, str]) -> None:
    """Writes {node: what it failed} for this attempt."""
    rank_errors.write(run.logs / NAME, TransientError(json.dumps(failed)))


def failed_nodes(run: RunDir) -> dict[str, str]:
    """{node: what it failed} of this attempt."""
    text = rank_errors.read(run.logs / NAME)
    return json.loads(text) if text else {}
