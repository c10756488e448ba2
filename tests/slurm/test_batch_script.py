"""The batch script: what sbatch gets, and what the script does."""

import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, Script
from helpers import call
from slurm_cluster import events

from ggcn.distributed.rank_info import RankInfo
from ggcn.launch import slurm_rank
from ggcn.launch.resources import NO_GPU
from ggcn.run import event_log

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    "change",
    [
        "run='one\nsleep 99'",
        "cluster.account='one\nsleep 99'",
        "cluster.container='one\nsleep 99'",
        "cluster.python='one\nsleep 99'",
        "cluster.mem='4G\nsleep 99'",
        "cluster.python='python; sleep 99'",
        "cluster.container='apptainer exec \"x'",
        "paths.runs='/tmp/100%j'",
    ],
)
def test_what_no_line_of_a_batch_script_can_contain_is_one_sentence(
    job_overrides: list[str], change: str
) -> None:
    refused = call("cluster/launch.py", "-m", "slurm", "--dry-run", *job_overrides, change)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert "sleep 99" not in refused.stdout


def test_a_value_with_quotes_spaces_and_a_hash_is_escaped(job_overrides: list[str]) -> None:
    shown = call(
        "cluster/launch.py", "-m", "slurm", "--dry-run", *job_overrides, r"cluster.qos='it\'s #1 \b'"
    )
    (line,) = (line for line in shown.stdout.splitlines() if "--qos" in line)
    assert line == """#SBATCH --qos='it'"'"'s #1 \\\\b'"""


def test_sbatch_variables_of_the_user_apply_where_no_key_is_set(
    job_overrides: list[str], fake_slurm: FakeSlurm
) -> None:
    variables = {
        "ACCOUNT": "project",
        "PARTITION": "slow",
        "GRES": "gpu:2",
        "TIMELIMIT": "5",
        "EXPORT": "NONE",
    }
    site = {f"SBATCH_{name}": value for name, value in variables.items()}
    done = fake_slurm.launch(*job_overrides, "cluster.partition=fast", **site)
    assert done.returncode == 0, done.stderr
    (script,) = fake_slurm.submitted()
    for line in (
        "account=project",
        "partition=fast",
        "gres=gpu:2",
        "ntasks-per-node=2",
        "time=240",
        "export=NONE",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert (fake_slurm.folder / "sbatch.env").read_text() == "", "they would win over the script"
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("warning"))
    assert "SBATCH_TIMELIMIT=5 is not passed on" in warning
    assert "cluster.time_min" in warning


def test_a_job_without_gpus_is_warned_about_on_submission_and_in_its_status(
    job_overrides: list[str], fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    done = fake_slurm.launch(*job_overrides)
    assert f"warning: {NO_GPU}" in done.stderr
    assert NO_GPU in fake_slurm.call("cluster/status.py", tmp_path / "runs/run").stdout
    assert events(tmp_path / "runs/run")[-1]["gpus_per_node"] == 0
    done = fake_slurm.launch(*job_overrides, "run=cpu", "cluster.gpus_per_node=0")
    assert "warning" not in done.stderr
    assert "none, as requested" in fake_slurm.call("cluster/status.py", tmp_path / "runs/cpu").stdout


def test_points_of_a_sweep_share_a_job_array_if_their_scripts_are_the_same(
    job_overrides: list[str], fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    sweep = ["--sweep", *job_overrides, "cluster.nodes=1,2", "cluster.time_min=60,600", "seed=1,2"]
    shown = fake_slurm.launch("--dry-run", *sweep).stdout
    asked = [("nodes=1", "time=60"), ("nodes=1", "time=600"), ("nodes=2", "time=60"), ("nodes=2", "time=600")]
    for scripts in (shown.split("#!/bin/bash")[1:], None):
        if scripts is None:
            done = fake_slurm.launch(*sweep)
            assert done.stdout.count("submitted") == 8
            scripts = fake_slurm.submitted()
        assert len(scripts) == 4
        for script, lines in zip(scripts, asked, strict=True):
            assert all(f"#SBATCH --{line}\n" in script for line in lines)
            assert "#SBATCH --array=0-1%2\n" in script
            runs = next(line for line in script.splitlines() if line.startswith("GGCN_RUNS="))
            assert runs.count(f"{lines[0].replace('=', '-')}_{lines[1].replace('time=', 'time_min-')}_") == 2

    # as if the launcher had been killed before it noted the ids
    runs = sorted((tmp_path / "runs/run").glob("nodes-*"))
    jobs = []
    for run in runs:
        run_events = events(run)
        (run / event_log.NAME).write_text(
            "".join(f"{line}\n" for line in _lines(run) if '"submit"' not in line)
        )
        job_id = run_events[-1]["job"]
        comment = f"{run.parent}?{run_events[0]['array']}"
        jobs.append(f"{job_id}|PENDING|{comment}")
    fake_slurm.write(squeue="cat <<'JOBS'\n" + "\n".join(jobs) + "\nJOBS")
    again = fake_slurm.launch(*sweep).stdout
    assert (again.count("submitted"), again.count("already job")) == (0, 8)


def test_a_sweep_may_lie_in_a_folder_with_an_odd_name(job_overrides: list[str], tmp_path: Path) -> None:
    escaped = f'{tmp_path}/it\\\'s a "#1"'
    shown = call(
        "cluster/launch.py",
        "-m",
        "slurm",
        "--dry-run",
        "--sweep",
        *job_overrides,
        f"paths.runs='{escaped}'",
        "seed=1,2",
    )
    assert shown.returncode == 0, shown.stderr
    line = next(line for line in shown.stdout.splitlines() if line.startswith("GGCN_RUNS="))
    listed = subprocess.check_output(["bash", "-c", f'{line}; printf "%s\\n" "${{GGCN_RUNS[@]}}"'], text=True)
    folder = f'{tmp_path}/it\'s a "#1"/run'
    assert listed.splitlines() == [f"{folder}/seed-1", f"{folder}/seed-2"]


def _lines(run: Path) -> list[str]:
    return (run / event_log.NAME).read_text().splitlines()


def test_an_element_of_an_array_uses_its_own_job_id(
    script: Callable[..., Script], fake_slurm: FakeSlurm
) -> None:
    run = script()
    fake_slurm.write(srun='env > "$0.env"; exit 137')
    run.text = run.text.replace("GGCN_RUNS=(", "GGCN_RUNS=(/nowhere ")  # it is the second
    run(SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="1")
    assert fake_slurm.calls("scontrol").splitlines() == ["requeue 40_1"]
    assert all("-j 40_1" in line for line in fake_slurm.calls("squeue").splitlines())
    (end,) = events(run.run.path)
    assert (end["job"], end["requeue"], end["attempt"]) == ("40_1", True, run.srun_variable("GGCN_ATTEMPT"))
    ports = set()
    for number, restarts in ((40, 0), (41, 7), (41, 0), (42, 0), (40, 14)):
        variables = {"SLURM_JOB_ID": str(number), "SLURM_RESTART_COUNT": str(restarts)}
        ports.add(_rank_info(variables).port)
    assert len(ports) == 5


def _rank_info(variables: dict[str, str]) -> RankInfo:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "1",
            "SLURM_LOCALID": "0",
            **variables,
        }.items():
            patch.setenv(name, value)
        return slurm_rank.slurm_rank_info()


def test_ranks_get_the_environment_of_cluster_setup_whatever_is_exported(
    script: Callable[..., Script], fake_slurm: FakeSlurm
) -> None:
    setup = "cluster.setup=['set -eu','cd /','export SITE=1']"
    run = script(setup, "cluster.sbatch=['--export=NONE','--gres=gpu:2','-c 3']")
    fake_slurm.write(srun='echo "$@" >> "$0.calls"; env > "$0.env"; exit 1')
    done = run(SLURM_EXPORT_ENV="NONE")
    assert done.returncode == 1
    assert "--export=ALL" in fake_slurm.calls("srun")
    assert run.srun_variable("SITE") == "1"
    assert run.srun_variable("PWD") == str(run.run.code)
    assert (run.srun_variable("GGCN_GPUS_PER_NODE"), run.srun_variable("OMP_NUM_THREADS")) == ("2", "3")
    assert events(run.run.path)[-1]["kind"] == "crash", "set -e must not skip the decision"


@pytest.mark.parametrize("slow", [3600, -3600])
def test_the_deadline_is_the_earlier_one_by_two_clocks(
    script: Callable[..., Script], fake_slurm: FakeSlurm, slow: int
) -> None:
    """slurmctld's clock is `slow` seconds behind this node's, and the job has two hours."""
    run = script()
    begin = datetime.now() - timedelta(seconds=slow)
    end = begin + timedelta(hours=2)
    fake_slurm.write(squeue=f'case "$*" in *%e*) echo {end:%FT%T};; *%S*) echo {begin:%FT%T};; esac')
    run()
    left = float(run.srun_variable("GGCN_JOB_END")) - time.time()
    expected = 7200 - max(slow, 0)
    assert expected - 300 < left < expected + 10


@pytest.mark.parametrize(
    ("message", "tries"), [("Job is disabled", 1), ("Unable to contact slurm controller", 3)]
)
def test_a_refused_requeue_is_logged_with_slurms_message(
    script: Callable[..., Script], fake_slurm: FakeSlurm, message: str, tries: int
) -> None:
    run = script()
    fake_slurm.write(
        srun="exit 137", scontrol=f'echo "$@" >> "$0.calls"; echo "slurm_requeue: {message}" >&2; exit 1'
    )
    assert run().returncode == 137
    assert fake_slurm.calls("scontrol").splitlines() == ["requeue 40"] * tries
    crash, end = events(run.run.path)
    assert (crash["kind"], crash["requeue"]) == ("crash", True)
    assert (end["kind"], end["requeue"]) == ("refused", False)
    assert f"refused to requeue the job (slurm_requeue: {message})" in end["reason"]


def test_ranks_that_crash_start_again_within_the_allocation_on_nodes_that_are_left(
    script: Callable[..., Script], fake_slurm: FakeSlurm
) -> None:
    """Twice on node2, which is left out then; then node1 goes down, and without enough nodes the job is requeued."""
    run = script("cluster.nodes=2", "cluster.spares=1", "cluster.max_crashes=9")
    crash = "srun: error: node2: task 1: Killed"
    fake_slurm.write(
        srun=f'echo "$@" >> "$0.calls"; echo $GGCN_ATTEMPT $SLURM_NTASKS >> "$0.env"; echo "{crash}" >&2\n'
        '[ $(wc -l < "$0.calls") = 3 ] && touch "$0.down"; exit 137',
        squeue=f'case "$*" in *%N) [ -e {fake_slurm.folder}/srun.down ] && echo node3 || echo "node[1-3]";; esac',
        scontrol='echo "$@" >> "$0.calls"\n'
        'case "$*" in *"node[1-3]") printf "node1\\nnode2\\nnode3\\n";; *hostnames*) echo "${@: -1}";; esac',
    )
    done = run(SLURM_JOB_NODELIST="node[1-3]", SLURM_JOB_NUM_NODES="3")
    starts = fake_slurm.calls("srun").splitlines()
    assert ["--nodelist" in start for start in starts] == [False, True, True], done.stderr
    assert "--nodelist=node1,node2 --nodes=2 --ntasks=2" in starts[1]
    assert "--nodelist=node1,node3 --nodes=2 --ntasks=2" in starts[2]
    attempts, tasks = zip(
        *(line.split() for line in (fake_slurm.folder / "srun.env").read_text().splitlines()), strict=True
    )
    assert tasks == ("2", "2", "2")
    first, second, third = events(run.run.path)
    assert tuple(end["attempt"] for end in (first, second, third)) == attempts
    assert (first["kind"], first["requeue"], first["in_place"], first["cause"]) == (
        "crash",
        False,
        True,
        "node2",
    )
    assert (second["left_out"], second["nodes"]) == (["node2"], ["node1", "node3"])
    assert (third["kind"], third["reason"], third["requeue"]) == ("node_down", "node1 went down", True)
    assert "in_place" not in third
    assert fake_slurm.calls("scontrol").splitlines()[-1] == "requeue 40"
    assert done.stderr.count(crash) == 3, "its log has srun's messages"
