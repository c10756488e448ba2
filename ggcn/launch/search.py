"""Searches: points that Optuna draws from ranges, each with what the earlier ones gave, trained as runs of their own.

The journal in the search's folder has all that was drawn and measured. Its one writer is the launcher, which holds a
lock: killed and started again it goes on with the points that are not over.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch import data_check, slurm
from ggcn.launch.modes import start
from ggcn.launch.prepare import is_complete
from ggcn.launch.search_space import Space
from ggcn.launch.submission import Point, print_scripts, submit
from ggcn.locks import LockTaken, exclusive_lock
from ggcn.run import history, status
from ggcn.run.directory import RunDir
from ggcn.run.status import QueuedJob

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger("ggcn")

JOURNAL = "search.jsonl"
POLL_S = 15
"""seconds between two looks at the jobs of a search"""
FAILURES = 3
"""points that fail one after another, with none that has ended well, end the search"""
DRAWN = "overrides"
"""attribute of a trial: what was drawn, as overrides"""


class Objective(NamedTuple):
    """The number that a search is about: its name, and whether lower is better."""

    name: str
    minimize: bool

    def of(self, run: RunDir) -> float | None:
        """The last value that a run has measured; None where there is none."""
        found = history.scores(run)
        return found.last if found.name == self.name else None


def objective(config: Config) -> Objective:
    """The last FID where the run measures it, else R^2 on held-out images. Raises UserError where it does neither."""
    if config.evaluation.every:
        return Objective("FID", minimize=True)
    if config.log.r2_every and config.model.flow.objective == "transport":
        return Objective("R2", minimize=False)
    raise UserError(
        "--search compares points by their last FID or R^2 on held-out images, and these measure neither; "
        "add evaluation.every=N, or log.r2_every=N with model.flow.objective=transport"
    )


def search(
    overrides: Sequence[str], count: int, mode: str, force: bool = False, dry_run: bool = False
) -> int:
    """Trains points of the space that the overrides describe until `count` are over; returns the exit code.

    With mode slurm it stays and submits a point whenever one is over, at most cluster.max_concurrent at a time; else
    the points run one after another. Raises UserError for what keeps it from starting.
    """
    space = Space(overrides)
    goal = objective(space.base)
    if dry_run:
        config = space.point(0, [f"{key}={values[0]}" for key, values in space.examples()])
        return print_scripts([(config, RunDir.of(config))])
    data_check.check(space.base)  # or every point would fail by itself
    space.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(space.folder / f".{JOURNAL}.lock"))
        except LockTaken:
            raise UserError(f"another launcher is at work on the search in {space.folder}") from None
        points = Points(space, open_study(space, goal, force), goal)
        if mode == "slurm":
            slurm.require()
            code = _as_jobs_until_interrupted(points, count)
        else:
            code = one_by_one(points, count, lambda config: start(config, mode, force))
        print(points.outcome())
    return code


class Points:
    """The points of a search: drawn, open, over."""

    def __init__(self, space: Space, study: "Study", goal: Objective) -> None:
        self.space, self.study, self.goal = space, study, goal

    def over(self) -> int:
        """How many have ended, well or not."""
        return len(self.study.trials) - len(self.unfinished())

    def unfinished(self) -> dict[int, Point]:
        """{number: (config, run)} of the points that are drawn and not over."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        drawn = {trial.number: trial.user_attrs.get(DRAWN) for trial in trials}
        for number in [number for number, overrides in drawn.items() if overrides is None]:
            self.fail(number, "the launcher was killed while it drew it")
        return {number: self._point(number, overrides) for number, overrides in drawn.items() if overrides}

    def draw(self) -> tuple[int, Point]:
        """A new point, with its number."""
        trial = self.study.ask()
        drawn = self.space.draw(trial)
        trial.set_user_attr(DRAWN, drawn)
        return trial.number, self._point(trial.number, drawn)

    def settle(self, number: int, run: RunDir) -> None:
        """Notes what a complete run has measured last."""
        value = self.goal.of(run)
        if value is None or not isfinite(value):
            self.fail(number, f"it has measured no {self.goal.name}")
        else:
            self.study.tell(number, value)
            print(f"{run.path.name}: {self.goal.name} {value:.4g}", flush=True)

    def fail(self, number: int, reason: str) -> None:
        """Notes that a point ended without a value. Raises UserError when all of the first ones do."""
        from optuna.trial import TrialState

        self.study.tell(number, state=TrialState.FAIL)
        print(f"error: point {number} of the search: {reason}", file=sys.stderr, flush=True)
        states = [trial.state for trial in self.study.trials]
        if states.count(TrialState.FAIL) >= FAILURES and TrialState.COMPLETE not in states:
            raise UserError(
                f"the search ended since {states.count(TrialState.FAIL)} points failed and none ended well; "
                f"correct the reason above and start it with another run=NAME"
            )

    def outcome(self) -> str:
        """The best point and where everything is, as text."""
        from optuna.trial import TrialState

        done = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        counted = f"{len(done)} of {len(self.study.trials)} points have ended well; all: {self.space.folder}"
        if not done:
            return counted
        best = self.study.best_trial
        what = " ".join(best.user_attrs[DRAWN])
        return f"best: {self.goal.name} {best.value:.4g} with {what} (point {best.number})\n{counted}"

    def _point(self, number: int, drawn: Sequence[str]) -> Point:
        config = self.space.point(number, drawn)
        return config, RunDir.of(config)


def one_by_one(points: Points, count: int, train: Callable[[Config], int]) -> int:
    """Trains point after point; an error ends one point, a stop request ends the search."""
    while True:
        waiting = list(points.unfinished().items())
        if not waiting and points.over() >= count:
            return 0
        number, (config, run) = waiting[0] if waiting else points.draw()
        try:
            code = train(config)
        except UserError as error:
            points.fail(number, str(error))
            continue
        if code:
            print("stopped; the same command goes on with the search")
            return code
        points.settle(number, run)


def _as_jobs_until_interrupted(points: Points, count: int) -> int:
    try:
        return _as_jobs(points, count)
    except KeyboardInterrupt:
        print("the jobs go on; the same command goes on with the search", file=sys.stderr)
        raise


def _as_jobs(points: Points, count: int) -> int:
    """Keeps cluster.max_concurrent points in the queue until `count` are over; those that have no job are submitted,
    once by this launcher."""
    width = points.space.base.cluster.max_concurrent
    submitted: set[int] = set()
    idle: set[int] = set()
    """points without a job at the last look; SLURM and the files of a run may be a moment behind each other"""
    while True:
        try:
            jobs = slurm.queue()
        except UserError as error:  # for a moment, as when slurmctld restarts
            log.warning("%s", error)
            time.sleep(POLL_S)
            continue
        live, without_job = _look(points, jobs)
        for number in idle & without_job & submitted:
            points.fail(number, "its job ended before the run was complete; its logs say why")
        idle = without_job & submitted
        waiting = points.unfinished()
        new = {number: point for number, point in waiting.items() if number not in live | submitted}
        while len(waiting) < min(width, count - points.over()):
            number, point = points.draw()
            waiting[number] = new[number] = point
        if new:
            submit(list(new.values()))
            submitted |= set(new)
        if not waiting:
            return 0
        time.sleep(POLL_S)


def _look(points: Points, jobs: dict[str, QueuedJob]) -> tuple[set[int], set[int]]:
    """The numbers of the open points that have a job and of those that have none; settles the complete ones."""
    live, without_job = set(), set()
    for number, (config, run) in points.unfinished().items():
        if run.config.exists() and status.read(run, jobs).live:
            live.add(number)
        elif is_complete(config, run):
            points.settle(number, run)
        else:
            without_job.add(number)
    return live, without_job


def open_study(space: Space, goal: Objective, force: bool) -> "Study":
    """The search's study from its journal, or a new one. Raises UserError where Optuna is not installed, or where the
    journal is about another space."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError("--search needs Optuna; install it with `pip install 'ggcn[search]'`") from None
    optuna.logging.set_verbosity(logging.WARNING)
    journal = space.folder / JOURNAL
    _drop_torn_line(journal)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="search",
        direction="minimize" if goal.minimize else "maximize",
        load_if_exists=True,
    )
    about: dict[str, Any] = {"objective": goal.name, "space": space.description()}
    if study.trials and not force:
        _refuse_another(space, study.user_attrs, about)
    for name, value in about.items():
        study.set_user_attr(name, value)
    # drawn anew after a restart, and not the same points again
    study.sampler = optuna.samplers.TPESampler(seed=space.base.seed + len(study.trials), constant_liar=True)
    return study


def _refuse_another(space: Space, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before != now:
        old, new = ([about.get("objective", ""), *about.get("space", [])] for about in (before, now))
        gone, come = (
            ", ".join(each for each in one if each not in two) for one, two in ((old, new), (new, old))
        )
        raise UserError(
            f"the search in {space.folder} was started with other settings ({gone or 'nothing'} instead of "
            f"{come or 'nothing'}); choose another run=NAME"
        )


def _drop_torn_line(journal: Path) -> None:
    """Cuts off a last line that a killed launcher left incomplete, which Optuna does not read on from."""
    if journal.exists():
        with journal.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
