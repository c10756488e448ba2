"""Jobs and job arrays of a real SLURM: cancelled, held, submitted once, with odd names."""

import time

import pytest
from slurm_cluster import events
from slurm_runs import ENDLESS, Run, uninterrupted

from ggcn.run import event_log
from ggcn.run.directory import RunDir


def test_a_cancel_counts_for_its_own_job_and_at_any_moment(run: Run) -> None:
    run.launch(ENDLESS)
    run.wait_for_attempt(1)
    run.cancel()
    first = run.job
    run.launch(ENDLESS)
    event_log.add(RunDir(run.path), "cancel", job=first)  # it came too late
    assert run.wait_for_attempt(2)["step"] == run.of("stop")[-1]["step"]

    run.cancel()
    saved = run.of("stop")[-1]["step"]
    run.launch(ENDLESS)
    run.slurm.wait(lambda: run.slurm.squeue().get(run.job) == "RUNNING")
    began = time.time()
    run.status("--cancel")  # its ranks are only starting
    run.wait_until_over()
    assert time.time() - began < 60, "a rank waited for another that had gone"
    assert run.of("end")[-1]["kind"] == "cancelled"
    assert max(event["step"] for event in run.of("stop")) == saved


def test_a_job_that_waits_says_why(run: Run) -> None:
    run.launch(ENDLESS, "cluster.sbatch=['--hold']")
    state = (
        f"waiting (PENDING: JobHeldUser; to be released with `scontrol release {run.job}`) as job {run.job}"
    )
    assert state in run.status()
    assert f"is already job {run.job} (PENDING: JobHeldUser;" in run.launch(ENDLESS)
    run.slurm.run("scontrol", "update", f"JobId={run.job}", "StartTime=now+1hour")
    run.slurm.run("scontrol", "release", run.job)
    run.slurm.wait(lambda: f"waiting (PENDING: BeginTime) as job {run.job}" in run.status())
    run.status("--cancel")
    run.wait_until_over()


def test_a_sweep_is_an_array_that_runs_what_is_missing(run: Run) -> None:
    part = ["--sweep", "model=gcn,wgcn", "seed=1,2", "train.steps=3", "cluster.nodes=1"]
    blocker = run.slurm.block()
    assert run.launch(*part).count("submitted") == 4
    # as if the launcher had been killed before it noted the ids
    for path in run.path.glob("*/submissions.jsonl"):
        path.write_text("".join(line for line in path.open() if '"submit"' not in line))
    said = run.launch(*part)
    assert (said.count("submitted"), said.count("already job")) == (0, 4)
    run.slurm.run("scancel", blocker)
    whole = ["--sweep", "model=gcn,wgcn,ggcn", *part[2:]]
    more = run.launch(*whole)
    assert more.count("submitted") == 2
    run.wait_until_over()
    again = run.launch(*whole)
    assert "submitted" not in again
    assert again.count("complete") == 6
    points = sorted(path.parent for path in run.path.glob("*/config.yaml"))
    named = [f"model-{model}_seed-{seed}" for model in ("gcn", "ggcn", "wgcn") for seed in (1, 2)]
    assert [point.name for point in points] == named
    result = [[event["event"] for event in events(point)] for point in points]
    assert [kinds.count("finish") for kinds in result] == [1] * 6
    assert sum(kinds.count("submit") for kinds in result) == 2  # of the others the launcher forgot


@pytest.mark.slow
def test_one_element_of_an_array_is_requeued_and_the_others_stay_as_they_are(run: Run) -> None:
    """One is finished, one failed with what only a person can change, one trains on; and two are preempted."""
    slurm, steps = run.slurm, (3, 4, 99999, 100000)
    lost = """if [ $SLURM_ARRAY_TASK_ID = 1 ]; then sed -i "s#^  shards:.#&/nowhere#" $GGCN_RUN/config.yaml; fi"""
    part = [
        "--sweep",
        f"train.steps={','.join(map(str, steps))}",
        "cluster.nodes=1",
        f"cluster.setup=['{lost}']",
    ]
    assert run.launch(*part).count("submitted") == 4
    finished, misconfigured, other, last = (
        Run(slurm, [*run.overrides, "cluster.nodes=1"], run.path, f"steps-{count}") for count in steps
    )
    assert slurm.show(last.job)["JobId"] == last.job.split("_")[0], (
        "its number is the array's, as the test wants"
    )
    misconfigured._wait(lambda: misconfigured.of("end"))
    finished._wait(lambda: finished.of("end"))
    other.wait_for_attempt(1)
    last.wait_for_attempt(1)
    assert [point.of("end")[-1]["kind"] for point in (finished, misconfigured)] == ["finished", "user_error"]

    known = last.metrics[-1]["step"]
    slurm.run("scancel", "--signal=USR2", last.job)
    assert last.wait_for_attempt(2)["step"] >= known
    assert len(other.of("start")) == 1
    assert set(slurm.squeue()) == {other.job, last.job}

    preempted = [other, last]
    known = last.metrics[-1]["step"]
    blocker = slurm.block()
    slurm.wait(lambda: slurm.squeue().get(blocker) == "RUNNING")
    slurm.run("scancel", blocker)
    assert [other.wait_for_attempt(2)["step"] > 0, last.wait_for_attempt(3)["step"] >= known] == [True, True]
    assert all("preempted" in point.of("end")[-1]["reason"] for point in preempted)
    assert [len(point.of("start")) for point in (finished, misconfigured)] == [1, 1]
    assert set(slurm.squeue()) == {other.job, last.job}
    assert [slurm.show(point.job)["Restarts"] for point in preempted] == ["1", "2"]

    for point in preempted:
        point.status("--cancel")
    run.wait_until_over()
    saved = last.of("stop")[-1]["step"]
    assert [line["step"] for line in last.metrics] == list(range(1, saved + 1))
    assert uninterrupted(run, saved, ranks=1).files(saved) == last.files(saved)


def test_sbatch_reads_odd_names_as_they_are_and_a_refused_requeue_is_one_sentence(run: Run) -> None:
    runs = run.path.parent / 'it\'s a "#1" & $x'
    typed = str(runs).replace("$", "\\$")  # no variable
    odd = Run(run.slurm, [*run.overrides, f"paths.runs={typed}"], runs, "run")
    odd.launch(ENDLESS, "cluster.nodes=1")
    shown = run.slurm.run("scontrol", "show", "job", odd.job)
    for line in (
        f"Comment={odd.path}",
        f"WorkDir={RunDir(odd.path).code}",
        f"StdOut={odd.path}/slurm/{odd.job}_0_log.out",
    ):
        assert line in shown
    odd.wait_for_attempt(1)
    assert f"already job {odd.job}" in odd.launch(ENDLESS, "cluster.nodes=1")
    run.slurm.run("scontrol", "update", f"jobid={odd.job}", "requeue=0")
    run.slurm.run("scancel", "--signal=USR2", odd.job)
    odd.wait_until_over()
    end = odd.of("end")[-1]
    assert (end["kind"], end["requeue"]) == ("refused", False)
    assert "disabled" in end["reason"]
    assert "gave up: SLURM refused to requeue the job (" in odd.status()
