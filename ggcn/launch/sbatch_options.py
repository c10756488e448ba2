"""Options of sbatch that users give next to the keys: entries of cluster.sbatch, and SBATCH_* variables."""

import os
import re
import shlex

from ggcn.errors import UserError

Options = dict[str, str | None]
"""values by sbatch's long name without dashes; None: the option takes none"""

SHORT = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint", "c": "cpus-per-task",
    "D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "h": "help",
    "i": "input", "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution",
    "N": "nodes", "n": "ntasks", "O": "overcommit", "o": "output", "p": "partition", "Q": "quiet", "q": "qos",
    "S": "core-spec", "s": "oversubscribe", "t": "time", "V": "version", "v": "verbose", "W": "wait",
    "w": "nodelist", "x": "exclude",
}  # fmt: skip
_OTHERS = """acctg-freq batch bb bbf cluster-constraint comment container container-id contiguous cores-per-socket
    cpu-freq cpus-per-gpu deadline delay-boot exclusive export export-file get-user-env gid gpu-bind gpu-freq
    gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint ignore-pbs kill-on-invalid-dep mail-type
    mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-requeue ntasks-per-core
    ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode parsable power prefer priority profile propagate
    reboot requeue reservation segment signal sockets-per-node spread-job switches tasks-per-node test-only
    thread-spec threads-per-core time-min tmp tres-bind tres-per-task uid usage use-min-nodes wait-all-nodes wckey
    wrap"""
LONG = {
    *SHORT.values(),
    *_OTHERS.split(),
}
"""names that may be abbreviated; others are left to sbatch"""

_RANKS = "ranks are counted by cluster.ranks_per_node=N"
_LOGS = "what a job prints is in the run's folders slurm/ and logs/"
_READ = "the launcher must read what sbatch says; --dry-run shows what would be submitted"
REFUSED = {
    "nodes": "set cluster.nodes=N",
    **dict.fromkeys(
        (
            "ntasks",
            "ntasks-per-node",
            "tasks-per-node",
            "ntasks-per-core",
            "ntasks-per-socket",
            "ntasks-per-gpu",
        ),
        _RANKS,
    ),
    "time": "set cluster.time_min=MINUTES",
    "signal": "set cluster.stop_lead_s=SECONDS",
    "no-requeue": "jobs are requeued to go on; cluster.max_crashes=1 leaves out those after a crash",
    "array": "say --sweep KEY=A,B",
    **dict.fromkeys(("output", "error", "input", "open-mode"), _LOGS),
    "job-name": "set run=NAME",
    "comment": "it holds the run's path, by which its job is known",
    "chdir": "a job works in its copy of the code; set paths.runs=FOLDER for its files",
    "wrap": "set cluster.setup=[COMMAND]",
    "container": "set cluster.container",
    "container-id": "set cluster.container",
    "clusters": "export SLURM_CLUSTERS=NAME, which squeue and scancel follow too",
    "gpus-per-socket": "set cluster.gpus_per_node=N",
    "tres-per-task": "set cluster.gpus_per_node=N and cluster.cpus_per_rank=N",
    **dict.fromkeys(("wait", "parsable", "quiet", "test-only", "help", "usage", "version"), _READ),
}
"""options that contradict what the launcher asks for, and what to say in their place"""

_INHERITED = """account acctg-freq cluster-constraint constraint core-spec cpus-per-gpu delay-boot
        distribution exclusive export gpu-bind gpu-freq gpus gpus-per-node gpus-per-task gres gres-flags hint
        mem-per-cpu mem-per-gpu network overcommit partition power profile qos reservation spread-job thread-spec
        threads-per-core use-min-nodes wckey"""
VARIABLES = {
    **{name.upper().replace("-", "_"): name for name in _INHERITED.split()},
    "BURST_BUFFER": "bb",
    "CPU_FREQ_REQ": "cpu-freq",
    "MEM_PER_NODE": "mem",
    "REQ_SWITCH": "switches",
}
"""SBATCH_* variables that are taken over, and the options that they stand for"""
UNUSED = ("REQUEUE", "DEBUG", "IGNORE_PBS", "GET_USER_ENV", "MEM_BIND", "CPU_BIND", "BATCH")
"""beginnings of SBATCH_* variables that make no difference, or that SLURM itself sets in a job"""
FLAGS = ("overcommit", "spread-job", "use-min-nodes")


def read(entries: list[str]) -> Options:
    """The options in cluster.sbatch, whose entries look like --option=value, --option value, --option or -o value.

    Raises UserError for what is no option, contradicts the launcher, or is given twice.
    """
    options: Options = {}
    for entry in entries:
        name, value = _parse(entry)
        if name in REFUSED:
            raise UserError(f"cluster.sbatch has {entry!r}, which the launcher decides: {REFUSED[name]}")
        if options.get(name, value) != value:
            raise UserError(f"cluster.sbatch has --{name} twice, the second time as {entry!r}; keep one")
        options[name] = value
    options.pop("requeue", None)  # it is asked for anyway
    return options


def environment() -> tuple[Options, list[str]]:
    """The options in the user's SBATCH_* variables, and a sentence for each that cannot be followed."""
    options: Options = {}
    warnings = []
    for variable, value in sorted(os.environ.items()):
        short = variable.removeprefix("SBATCH_")
        if short == variable or short.startswith(UNUSED):
            continue
        if (name := VARIABLES.get(short)) is None:
            other = REFUSED.get({"TIMELIMIT": "time", "ARRAY_INX": "array"}.get(short, _dashed(short)))
            warnings.append(
                f"{variable}={value} is not passed on to sbatch; {other or 'add it to cluster.sbatch'}"
            )
        elif name in FLAGS or (name == "exclusive" and not value):
            options[name] = None
        else:
            options[name] = value
    return options, warnings


def quoted(name: str, value: object) -> str:
    """A value as it must be handed to submitit, so that sbatch reads it back unchanged.

    Raises UserError for what would leave the line.
    """
    one_line(f"--{name}", str(value))
    return str(value).replace("\\", "\\\\")  # sbatch takes a backslash for an escape, within quotes too


def one_line(name: str, value: str) -> None:
    """Raises UserError where a value has characters that no line of a batch script can hold."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise UserError(f"{name}={value!r} must be one line of printable characters; change it")


def shell_command(name: str, value: str) -> None:
    """Raises UserError unless a value is the beginning of one shell command: no further command, no comment."""
    one_line(name, value)
    try:
        lexer = shlex.shlex(value, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        lexer.commenters = ""
        parts = list(lexer)
    except ValueError as error:
        raise UserError(f"{name}={value!r} cannot be read by a shell ({error}); close it") from None
    if any(set(part) <= set(";&|<>") or part.startswith("#") for part in parts if part):
        raise UserError(f"{name}={value!r} must be one command; put further ones in cluster.setup")


def _parse(entry: str) -> tuple[str, str | None]:
    one_line("cluster.sbatch", entry)
    match = re.fullmatch(r"(?:--([A-Za-z][\w-]*)(?:\s*=|\s+|$)|-([A-Za-z])\s*=?)\s*(.*)", entry.strip())
    if match is None:
        raise UserError(f"cluster.sbatch has {entry!r}; its entries look like --option=value")
    long, short, rest = match.groups()
    if short and short not in SHORT:
        raise UserError(f"cluster.sbatch has {entry!r}, which sbatch does not know; write its name out")
    return _full(long) if long else SHORT[short], _value(entry, rest) if "=" in entry or rest else None


def _value(entry: str, text: str) -> str:
    """The value of an entry without quotes around it."""
    try:
        parts = shlex.split(text)
    except ValueError:
        raise UserError(f"cluster.sbatch has {entry!r} with a quote that is not closed; close it") from None
    if any(re.match(r"--?[A-Za-z]", part) for part in parts):
        raise UserError(f"cluster.sbatch has {entry!r}; give every option an entry of its own")
    return parts[0] if len(parts) == 1 else text


def _full(name: str) -> str:
    """An option's whole name. sbatch, too, takes abbreviations."""
    name = _dashed(name)
    known = sorted(long for long in LONG if long.startswith(name))
    if name in LONG or not known:
        return name
    if len(known) > 1:
        raise UserError(f"cluster.sbatch has --{name}, which may be {' or '.join(known)}; write it out")
    return known[0]


def _dashed(name: str) -> str:
    return name.lower().replace("_", "-")
