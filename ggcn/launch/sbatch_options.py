"""Options of sbatch from users: entries of cluster.sbatch, and SBATCH_* environment variables."""

import os
import re
import shlex

from ggcn.errors import UserError

Options = dict[str, str | None]
"""values by sbatch's long option name without dashes; None: the option takes no value"""

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
"""names that may be abbreviated; sbatch decides about others"""

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
    "no-requeue": "jobs are requeued to resume; cluster.max_crashes=1 prevents requeues after a crash",
    "array": "use --sweep KEY=A,B",
    **dict.fromkeys(("output", "error", "input", "open-mode"), _LOGS),
    "job-name": "set run=NAME",
    "comment": "it contains the run's path, by which its job is found",
    "chdir": "a job works in its copy of the code; set paths.runs=FOLDER for its files",
    "wrap": "set cluster.setup=[COMMAND]",
    "container": "set cluster.container",
    "container-id": "set cluster.container",
    "clusters": "export SLURM_CLUSTERS=NAME, which squeue and scancel follow too",
    "gpus-per-socket": "set cluster.gpus_per_node=N",
    "tres-per-task": "set cluster.gpus_per_node=N and cluster.cpus_per_rank=N",
    **dict.fromkeys(("wait", "parsable", "quiet", "test-only", "help", "usage", "version"), _READ),
}
"""options that the launcher sets itself, and what to use instead"""

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
"""SBATCH_* variables that are respected, and their options"""
UNUSED = ("REQUEUE", "DEBUG", "IGNORE_PBS", "GET_USER_ENV", "MEM_BIND", "CPU_BIND", "BATCH")
"""prefixes of SBATCH_* variables that have no effect, or that SLURM itself sets in a job"""
FLAGS = ("overcommit", "spread-job", "use-min-nodes")


def read(entries: list[str]) -> Options:
    """The options in cluster.sbatch, whose entries look like --option=value, --option value, --option or -o value.

    Raises UserError for an entry that is not an option, that the launcher sets itself, or that is given twice.
    """
    options: Options = {}
    for entry in entries:
        name, value = _parse(entry)
        if name in REFUSED:
            raise UserError(f"cluster.sbatch has {entry!r}, which the launcher decides: {REFUSED[name]}")
        if options.get(name, value) != value:
            raise UserError(f"cluster.sbatch has --{name} twice, the second time as {entry!r}; keep one")
        options[name] = value
    options.pop("requeue", None)  # the launcher sets it anyway
    return options


def environment() -> tuple[Options, list[str]]:
    """The options in the user's SBATCH_* variables, and a warning for each variable that is not respected."""
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
    """A value escaped for submitit, so that sbatch reads it unchanged.

    Raises UserError for a value that is not one line.
    """
    one_line(f"--{name}", str(value))
    return str(value).replace("\\", "\\\\")  # sbatch unescapes backslashes, within quotes too


def one_line(name: str, value: str) -> None:
    """Raises UserError where a value has control characters, which no line of a batch script can contain."""
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise UserError(f"{name}={value!r} must be one line of printable characters; change it")


def shell_command(name: str, value: str) -> None:
    """Raises UserError unless a value is the start of a single shell command, without operators and comments."""
    one_line(name, value)
    try:
        lexer = shlex.shlex(value, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        lexer.commenters = ""
        tokens = list(lexer)
    except ValueError as error:
        raise UserError(f"{name}={value!r} cannot be read by a shell ({error}); close it") from None
    if any(set(token) <= set(";&|<>") or token.startswith("#") for token in tokens if token):
        raise UserError(f"{name}={value!r} must be one command; put further ones in cluster.setup")


def _parse(entry: str) -> tuple[str, str | None]:
    one_line("cluster.sbatch", entry)
    match = re.fullmatch(r"(?:--([A-Za-z][\w-]*)(?:\s*=|\s+|$)|-([A-Za-z])\s*=?)\s*(.*)", entry.strip())
    if match is None:
        raise UserError(f"cluster.sbatch has {entry!r}; its entries look like --option=value")
    long, short, rest = match.groups()
    if short and short not in SHORT:
        raise UserError(f"cluster.sbatch has {entry!r}, which sbatch does not know; use its long name")
    return _full_name(long) if long else SHORT[short], _value(entry, rest) if "=" in entry or rest else None


def _value(entry: str, text: str) -> str:
    """The value of an entry without the quotes around it."""
    try:
        parts = shlex.split(text)
    except ValueError:
        raise UserError(f"cluster.sbatch has {entry!r} with a quote that is not closed; close it") from None
    if any(re.match(r"--?[A-Za-z]", part) for part in parts):
        raise UserError(f"cluster.sbatch has {entry!r}; give every option an entry of its own")
    return parts[0] if len(parts) == 1 else text


def _full_name(name: str) -> str:
    """The full name of an option, which may be abbreviated as for sbatch."""
    name = _dashed(name)
    known = sorted(long for long in LONG if long.startswith(name))
    if name in LONG or not known:
        return name
    if len(known) > 1:
        raise UserError(f"cluster.sbatch has --{name}, which may be {' or '.join(known)}; write it out")
    return known[0]


def _dashed(name: str) -> str:
    return name.lower().replace("_", "-")
