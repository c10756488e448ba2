"""What is handed to sbatch, and what the batch script does, with stand-ins for SLURM's commands."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from ggcn.launch.request import NO_GPU, Request
from helpers import TINY, call, command, quiet_environment
from slurm_cluster import events

from ggcn.config.compose import compose
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError
from ggcn.launch import job, requeue, sbatch_options, slurm
from ggcn.launch.signals import StopSignal
from ggcn.run import event_log
from ggcn.run.directory import RunDir


@pytest.fixture(autouse=True)
def no_site(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_", "GGCN_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def words(faces: Path, tmp_path: Path) -> list[str]:
    return [*TINY, "engine=plain", f"data.shards={faces}", f"paths.runs={tmp_path}/runs", "run=run"]


@dataclass
class StandIns:
    """A folder of commands with SLURM's names, and what they noted."""

    folder: Path

    def write(self, **scripts: str) -> None:
        """Makes or replaces commands."""
        for name, text in scripts.items():
            path = self.folder / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)

    def noted(self, name: str) -> str:
        """What a command was called with, a line per call."""
        path = self.folder / f"{name}.calls"
        return path.read_text() if path.exists() else ""

    @property
    def environment(self) -> dict[str, str]:
        return quiet_environment() | {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    def launch(self, *words: object, **variables: str) -> subprocess.CompletedProcess:
        """Runs the launcher among them."""
        return self.call("cluster/launch.py", "-m", "slurm", *words, **variables)

    def call(self, name: str, *words: object, **variables: str) -> subprocess.CompletedProcess:
        """Runs a script of the project among them."""
        return subprocess.run(
            command(name, *words),
            capture_output=True,
            text=True,
            env=self.environment | variables,
            timeout=120,
            check=False,
        )

    def submitted(self) -> list[str]:
        """The batch scripts that sbatch got."""
        return [path.read_text() for path in sorted(self.folder.glob("script.*"))]


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    """squeue, scontrol and srun that do nothing; sbatch keeps its scripts."""
    found = StandIns(tmp_path / "commands")
    found.folder.mkdir()
    note = 'echo "$@" >> "$0.calls"'
    keep = f'number=$(ls {found.folder}/script.* 2>/dev/null | wc -l); cp "${{@: -1}}" {found.folder}/script.$number'
    found.write(
        sbatch=f"{note}; env | grep ^SBATCH_ >> $0.env; {keep}; echo Submitted batch job 1$number",
        squeue=note,
        scontrol=note,
        srun=f"{note}; env > $0.env",
        sleep="exit 0",
    )
    return found


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
        ("--comment=x", "by which its job is known"),
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
def test_options_that_contradict_the_launcher_are_refused_with_what_to_say_instead(
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
def test_a_rank_per_gpu_however_they_are_asked_for(
    words: list[str], change: list[str], ranks: int, gpus: int
) -> None:
    request = Request.of(compose([*words, *change]))
    assert (request.ranks_per_node, request.gpus_per_node) == (ranks, gpus)
    unsaid = not gpus and not any("gpus_per_node" in word for word in change)
    assert request.warnings == ([NO_GPU] if unsaid else [])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["cluster.gpus_per_node=4", "cluster.ranks_per_node=8"], "needs as many GPUs"),
        (["cluster.sbatch=['--gres=gpu:2']", "cluster.gpus_per_node=4"], "asks for 2 GPUs a node where 4"),
        (["cluster.sbatch=['--gres=gpu:2']", "cluster.gpus_per_node=0"], "asks for 2 GPUs a node where 0"),
        (["cluster.sbatch=['--gpus=3']", "cluster.nodes=2"], "cannot be shared by cluster.nodes=[2]"),
        (["cluster.sbatch=['--gpus-per-task=2']"], "must be 1"),
        (["cluster.sbatch=['--partition=a']", "cluster.partition=b"], "disagree"),
        (["cluster.sbatch=['--mem-per-cpu=1G']", "cluster.mem=4G"], "exclude each other"),
        (["cluster.sbatch=['-c many']"], "cluster.cpus_per_rank"),
    ],
)
def test_resources_that_cannot_be_are_refused(words: list[str], change: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        Request.of(compose([*words, *change]))


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
def test_what_no_line_of_a_batch_script_can_hold_is_one_sentence(words: list[str], change: str) -> None:
    refused = call("cluster/launch.py", "-m", "slurm", "--dry-run", *words, change)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert "sleep 99" not in refused.stdout


def test_a_value_with_quotes_blanks_and_a_hash_stays_a_value(words: list[str]) -> None:
    shown = call("cluster/launch.py", "-m", "slurm", "--dry-run", *words, r"cluster.qos='it\'s #1 \b'")
    (line,) = (line for line in shown.stdout.splitlines() if "--qos" in line)
    assert line == """#SBATCH --qos='it'"'"'s #1 \\\\b'"""


def test_variables_of_the_user_count_where_no_key_does(words: list[str], stand_ins: StandIns) -> None:
    variables = {
        "ACCOUNT": "project",
        "PARTITION": "slow",
        "GRES": "gpu:2",
        "TIMELIMIT": "5",
        "EXPORT": "NONE",
    }
    site = {f"SBATCH_{name}": value for name, value in variables.items()}
    done = stand_ins.launch(*words, "cluster.partition=fast", **site)
    assert done.returncode == 0, done.stderr
    (script,) = stand_ins.submitted()
    for line in (
        "account=project",
        "partition=fast",
        "gres=gpu:2",
        "ntasks-per-node=2",
        "time=240",
        "export=NONE",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert (stand_ins.folder / "sbatch.env").read_text() == "", "they would win over the script"
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("warning"))
    assert "SBATCH_TIMELIMIT=5 is not passed on" in warning
    assert "cluster.time_min" in warning


def test_a_job_without_gpus_is_warned_of_where_it_is_submitted_and_in_its_status(
    words: list[str], stand_ins: StandIns, tmp_path: Path
) -> None:
    done = stand_ins.launch(*words)
    assert f"warning: {NO_GPU}" in done.stderr
    assert NO_GPU in stand_ins.call("cluster/status.py", tmp_path / "runs/run").stdout
    assert events(tmp_path / "runs/run")[-1]["gpus_per_node"] == 0
    said = stand_ins.launch(*words, "run=said", "cluster.gpus_per_node=0")
    assert "warning" not in said.stderr
    assert "none, as asked for" in stand_ins.call("cluster/status.py", tmp_path / "runs/said").stdout


def test_points_of_a_sweep_share_a_job_array_only_with_their_like(
    words: list[str], stand_ins: StandIns, tmp_path: Path
) -> None:
    sweep = ["--sweep", *words, "cluster.nodes=1,2", "cluster.time_min=60,600", "seed=1,2"]
    shown = stand_ins.launch("--dry-run", *sweep).stdout
    asked = [("nodes=1", "time=60"), ("nodes=1", "time=600"), ("nodes=2", "time=60"), ("nodes=2", "time=600")]
    for scripts in (shown.split("#!/bin/bash")[1:], None):
        if scripts is None:
            done = stand_ins.launch(*sweep)
            assert done.stdout.count("submitted") == 8
            scripts = stand_ins.submitted()
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
        told = events(run)
        (run / event_log.NAME).write_text(
            "".join(f"{line}\n" for line in _lines(run) if '"submit"' not in line)
        )
        number = told[-1]["job"]
        comment = f"{run.parent}?{told[0]['array']}"
        jobs.append(f"{number}|PENDING|{comment}")
    stand_ins.write(squeue="cat <<'JOBS'\n" + "\n".join(jobs) + "\nJOBS")
    again = stand_ins.launch(*sweep).stdout
    assert (again.count("submitted"), again.count("already job")) == (0, 8)


def test_a_sweep_may_lie_in_a_folder_with_an_odd_name(words: list[str], tmp_path: Path) -> None:
    escaped = f'{tmp_path}/it\\\'s a "#1"'
    shown = call(
        "cluster/launch.py",
        "-m",
        "slurm",
        "--dry-run",
        "--sweep",
        *words,
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


@dataclass
class Script:
    """A batch script and how to run it."""

    stand_ins: StandIns
    run: RunDir
    text: str

    def __call__(self, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", self.text],
            capture_output=True,
            text=True,
            env=self.stand_ins.environment | {"SLURM_JOB_ID": "40", **variables},
            timeout=120,
            check=False,
        )

    def of_ranks(self, name: str) -> str:
        """A variable as srun got it."""
        lines = (self.stand_ins.folder / "srun.env").read_text().splitlines()
        return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), "")


@pytest.fixture
def script(words: list[str], stand_ins: StandIns) -> Callable[..., Script]:
    def make(*change: str) -> Script:
        config = compose([*words, *change])
        run = RunDir.of(config)
        run.freeze(config)
        return Script(stand_ins, run, slurm.text(config, [run]))

    return make


def test_an_element_of_an_array_speaks_to_slurm_of_itself(
    script: Callable[..., Script], stand_ins: StandIns
) -> None:
    run = script()
    stand_ins.write(srun='env > "$0.env"; exit 137')
    run.text = run.text.replace("GGCN_RUNS=(", "GGCN_RUNS=(/nowhere ")  # it is the second
    run(SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="1")
    assert stand_ins.noted("scontrol").splitlines() == ["requeue 40_1"]
    assert all("-j 40_1" in line for line in stand_ins.noted("squeue").splitlines())
    (end,) = events(run.run.path)
    assert (end["job"], end["again"], end["attempt"]) == ("40_1", True, run.of_ranks("GGCN_ATTEMPT"))
    ports = set()
    for number, restarts in ((40, 0), (41, 7), (41, 0), (42, 0), (40, 14)):
        place = {"SLURM_JOB_ID": str(number), "SLURM_RESTART_COUNT": str(restarts)}
        ports.add(_place(place).port)
    assert len(ports) == 5


def _place(variables: dict[str, str]) -> RankInfo:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "1",
            "SLURM_LOCALID": "0",
            **variables,
        }.items():
            patch.setenv(name, value)
        return job.slurm_place()


def test_ranks_get_what_was_set_up_whatever_is_exported(
    script: Callable[..., Script], stand_ins: StandIns
) -> None:
    setup = "cluster.setup=['set -eu','cd /','export SITE=1']"
    run = script(setup, "cluster.sbatch=['--export=NONE','--gres=gpu:2','-c 3']")
    stand_ins.write(srun='echo "$@" >> "$0.calls"; env > "$0.env"; exit 1')
    done = run(SLURM_EXPORT_ENV="NONE")
    assert done.returncode == 1
    assert "--export=ALL" in stand_ins.noted("srun")
    assert run.of_ranks("SITE") == "1"
    assert run.of_ranks("PWD") == str(run.run.code)
    assert (run.of_ranks("GGCN_GPUS_PER_NODE"), run.of_ranks("OMP_NUM_THREADS")) == ("2", "3")
    assert events(run.run.path)[-1]["kind"] == "crash", "set -e is no reason not to ask"


@pytest.mark.parametrize("slow", [3600, -3600])
def test_the_deadline_is_the_earlier_one_of_two_clocks(
    script: Callable[..., Script], stand_ins: StandIns, slow: int
) -> None:
    """slurmctld's clock is `slow` seconds behind this node's, and the job has two hours."""
    run = script()
    begin = datetime.now() - timedelta(seconds=slow)
    end = begin + timedelta(hours=2)
    stand_ins.write(squeue=f'case "$*" in *%e*) echo {end:%FT%T};; *%S*) echo {begin:%FT%T};; esac')
    run()
    left = float(run.of_ranks("GGCN_JOB_END")) - time.time()
    wanted = 7200 - max(slow, 0)
    assert wanted - 300 < left < wanted + 10


@pytest.mark.parametrize(
    ("said", "tries"), [("Job is disabled", 1), ("Unable to contact slurm controller", 3)]
)
def test_a_requeue_that_is_refused_is_noted_with_what_slurm_said(
    script: Callable[..., Script], stand_ins: StandIns, said: str, tries: int
) -> None:
    run = script()
    stand_ins.write(
        srun="exit 137", scontrol=f'echo "$@" >> "$0.calls"; echo "slurm_requeue: {said}" >&2; exit 1'
    )
    assert run().returncode == 137
    assert stand_ins.noted("scontrol").splitlines() == ["requeue 40"] * tries
    crash, end = events(run.run.path)
    assert (crash["kind"], crash["again"]) == ("crash", True)
    assert (end["kind"], end["again"]) == ("refused", False)
    assert f"refused to requeue the job (slurm_requeue: {said})" in end["reason"]


def test_what_another_attempt_left_counts_for_nothing_whatever_the_clocks_say(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(words)
    run = RunDir.of(config)
    run.freeze(config)
    monkeypatch.setenv("SLURM_JOB_ID", "1")

    def fail(*_: object) -> None:
        event_log.add(run, "start")
        raise UserError("no shards")

    monkeypatch.setattr(job, "run_rank", fail)
    monkeypatch.setenv(event_log.ATTEMPT, "first")
    if (pid := os.fork()) == 0:
        job.exit_code(run, RankInfo(), StopSignal())
    os.waitpid(pid, 0)
    note = run.error(0)
    for skew in (-3600, 3600):
        os.utime(note, (time.time() + skew,) * 2)
        assert requeue.verdict(run, 137)[:2] == ("mistake", "no shards")
    monkeypatch.setenv(event_log.ATTEMPT, "second")
    event_log.add(run, "start")
    assert requeue.verdict(run, 137).kind == "crash"


def test_an_attempt_begins_with_no_notes_of_the_one_before(
    script: Callable[..., Script], stand_ins: StandIns
) -> None:
    run = script()
    run.run.logs.mkdir()
    for kind in ("error", "transient", "stacks"):
        (run.run.logs / f"rank_0003.{kind}").write_text("of a larger world, before")
    stand_ins.write(srun="exit 137")
    run()
    (end,) = events(run.run.path)
    assert end["kind"] == "crash"
    assert "SIGKILL" in end["reason"]
    assert [path.name for path in run.run.logs.iterdir()] == ["rank_0003.stacks.old"]
