"""The resources that a job requests, and the options of sbatch that users add."""

import pytest

from ggcn.config.compose import compose
from ggcn.errors import UserError
from ggcn.launch import sbatch_options
from ggcn.launch.resources import NO_GPU, ResourceRequest

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    ("entry", "name", "value"),
    [
        ("--exclusive", "exclusive", None),
        ("--mail-user=me@x.org", "mail-user", "me@x.org"),
        ("--mail-user me@x.org", "mail-user", "me@x.org"),
        ("--part=gpu", "partition", "gpu"),
        ("-p gpu", "partition", "gpu"),
        ("-pgpu", "partition", "gpu"),
        ("--Gpus_Per_Node=4", "gpus-per-node", "4"),
        ("--constraint='a100&nvlink'", "constraint", "a100&nvlink"),
        ("--nice=-5", "nice", "-5"),
        ("--some-new-option=x", "some-new-option", "x"),
    ],
)
def test_options_are_read_as_sbatch_reads_them(entry: str, name: str, value: str | None) -> None:
    assert sbatch_options.read([entry]) == {name: value}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("--nodes=2", "cluster.nodes"),
        ("-N2", "cluster.nodes"),
        ("-N 2", "cluster.nodes"),
        ("--time=60", "cluster.time_min"),
        ("-t 60", "cluster.time_min"),
        ("--signal=USR1@60", "cluster.stop_lead_s"),
        ("--sig=USR1@60", "cluster.stop_lead_s"),
        ("--no-requeue", "cluster.max_crashes"),
        ("--ntasks=8", "cluster.ranks_per_node"),
        ("--ntasks-per-node=8", "cluster.ranks_per_node"),
        ("--ntasks_per_node 8", "cluster.ranks_per_node"),
        ("-n8", "cluster.ranks_per_node"),
        ("--array=0-3", "--sweep"),
        ("--output=x", "slurm/"),
        ("--job-name=x", "run=NAME"),
        ("--comment=x", "by which its job is found"),
        ("--chdir=/tmp", "copy of the code"),
        ("--wrap=date", "cluster.setup"),
        ("--parsable", "--dry-run"),
        ("--wait", "--dry-run"),
        ("--mem-per=4", "mem-per-cpu or mem-per-gpu"),
        ("--exclusive --mem=4G", "an entry of its own"),
        ("--mail-user='x", "not closed"),
        ("--exclusive\nsleep 1", "one line"),
        ("exclusive", "look like --option=value"),
    ],
)
def test_options_that_the_launcher_sets_are_refused_with_what_to_use_instead(
    entry: str, sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        sbatch_options.read([entry])
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "ranks", "gpus"),
    [
        ([], 1, 0),
        (["cluster.gpus_per_node=0", "cluster.ranks_per_node=2"], 2, 0),
        (["cluster.gpus_per_node=4"], 4, 4),
        (["cluster.sbatch=['--gres=gpu:4']"], 4, 4),
        (["cluster.sbatch=['--gres=gpu:a100:2,nvme:1']"], 2, 2),
        (["cluster.sbatch=['--gres=gpu']"], 1, 1),
        (["cluster.sbatch=['--gpus-per-node=a100:4']", "cluster.gpus_per_node=4"], 4, 4),
        (["cluster.sbatch=['--gpus=4']", "cluster.nodes=2"], 2, 2),
        (["cluster.sbatch=['-G 4']"], 4, 4),
        (["cluster.sbatch=['--gpus-per-task=1']", "cluster.ranks_per_node=4"], 4, 4),
        (["cluster.sbatch=['--gres=nvme:1']"], 1, 0),
    ],
)
def test_there_is_a_rank_per_gpu_however_gpus_are_requested(
    job_overrides: list[str], change: list[str], ranks: int, gpus: int
) -> None:
    request = ResourceRequest.of(compose([*job_overrides, *change]))
    assert (request.ranks_per_node, request.gpus_per_node) == (ranks, gpus)
    unset = not gpus and not any("gpus_per_node" in word for word in change)
    assert request.warnings == ([NO_GPU] if unset else [])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["cluster.gpus_per_node=4", "cluster.ranks_per_node=8"], "needs as many GPUs"),
        (["cluster.sbatch=['--gres=gpu:2']", "cluster.gpus_per_node=4"], "requests 2 GPUs a node where 4"),
        (["cluster.sbatch=['--gres=gpu:2']", "cluster.gpus_per_node=0"], "requests 2 GPUs a node where 0"),
        (["cluster.sbatch=['--gpus=3']", "cluster.nodes=2"], "cannot be divided among cluster.nodes=[2]"),
        (["cluster.sbatch=['--gpus-per-task=2']"], "must be 1"),
        (["cluster.sbatch=['--partition=a']", "cluster.partition=b"], "disagree"),
        (["cluster.sbatch=['--mem-per-cpu=1G']", "cluster.mem=4G"], "exclude each other"),
        (["cluster.sbatch=['-c many']"], "cluster.cpus_per_rank"),
    ],
)
def test_contradictory_resources_are_refused(
    job_overrides: list[str], change: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        ResourceRequest.of(compose([*job_overrides, *change]))


def test_spares_need_gpus_by_the_node(job_overrides: list[str]) -> None:
    total = [*job_overrides, "cluster.nodes=2", "cluster.sbatch=['--gpus=8']"]
    assert ResourceRequest.of(compose(total)).gpus_per_node == 4
    with pytest.raises(UserError, match=r"--gpus=8 counts the GPUs of all nodes.*cluster.gpus_per_node"):
        ResourceRequest.of(compose([*total, "cluster.spares=1"]))
