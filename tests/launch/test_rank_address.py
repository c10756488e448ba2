"""Where ranks of a SLURM job meet."""

import pytest

from ggcn.launch.slurm_rank import first_host


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("login", "login"),
        ("a1,a2", "a1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[12,14-16]", "gpu12"),
        ("rack[1-2]-node[03-04]", "rack1-node03"),
        ("gpu-[3]", "gpu-3"),
        ("", ""),
    ],
)
def test_ranks_meet_on_the_first_node(nodes: str, host: str) -> None:
    assert first_host(nodes) == host
