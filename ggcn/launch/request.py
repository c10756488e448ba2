"""What a run's jobs ask SLURM for: nodes, ranks, GPUs, and the options of sbatch that say so."""

from dataclasses import dataclass
from typing import Any

from ggcn.config.schema import Config
from ggcn.config.validation import acceptable_nodes, validate_world
from ggcn.errors import UserError
from ggcn.launch import sbatch_options
from ggcn.launch.sbatch_options import Options

GPUS = ("gpus-per-node", "gres", "gpus", "gpus-per-task")
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
NO_GPU = "the job asks for no GPU and trains on CPU cores; set cluster.gpus_per_node=N, or 0 if that is what you want"


@dataclass(frozen=True)
class Request:
    """Resources of a run's jobs."""

    nodes: list[int]
    """acceptable numbers, largest first"""
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_rank: int | None
    options: Options
    """for sbatch: those with a key of their own, cluster.sbatch, and the user's SBATCH_* variables"""
    warnings: list[str]

    @classmethod
    def of(cls, config: Config) -> "Request":
        """The request of a config. Raises UserError for what contradicts itself or cannot be."""
        cluster, nodes = config.cluster, acceptable_nodes(config)
        chosen = _merge(_own(config), sbatch_options.read(cluster.sbatch))
        inherited, warnings = sbatch_options.environment()
        chosen |= _fitting(inherited, chosen, cluster.gpus_per_node)
        gpus = _gpus(config, chosen, nodes)
        ranks = cluster.ranks_per_node or gpus or 1
        if gpus and ranks > gpus:
            raise UserError(
                f"cluster.ranks_per_node={ranks} needs as many GPUs, and {gpus} a node are asked for; a rank has one"
            )
        if gpus and ranks < gpus:
            warnings.append(
                f"cluster.ranks_per_node={ranks} leaves {gpus - ranks} of {gpus} GPUs a node idle"
            )
        if gpus is None:
            warnings.append(NO_GPU)
        return cls(nodes, ranks, gpus or 0, _cpus(chosen), chosen, warnings)

    def validate(self, config: Config) -> None:
        """Raises UserError unless every acceptable number of nodes has ranks that share the lanes equally."""
        for nodes in self.nodes:
            validate_world(config, nodes * self.ranks_per_node)

    def facts(self) -> dict[str, Any]:
        """What the run's history says of it."""
        return {
            "nodes": self.nodes,
            "ranks_per_node": self.ranks_per_node,
            "gpus_per_node": self.gpus_per_node,
        }


def _own(config: Config) -> Options:
    """The options that have keys, where these are set."""
    cluster = config.cluster
    keys = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mem": cluster.mem,
        "cpus-per-task": cluster.cpus_per_rank,
    }
    return {name: str(value) for name, value in keys.items() if value}


def _merge(own: Options, given: Options) -> Options:
    """Both; raises UserError where cluster.sbatch says other than a key does."""
    keys = {"cpus-per-task": "cpus_per_rank"}
    for name in own.keys() & given.keys():
        if own[name] != given[name]:
            raise UserError(
                f"cluster.{keys.get(name, name)}={own[name]} and --{name}={given[name]} of cluster.sbatch disagree; "
                "keep the first"
            )
    if "mem" in own and (other := [name for name in MEMORY[1:] if name in given]):
        raise UserError(
            f"cluster.mem={own['mem']} and --{other[0]} of cluster.sbatch exclude each other; keep one"
        )
    return own | given


def _fitting(inherited: Options, chosen: Options, gpus: int | None) -> Options:
    """The inherited options that do not speak of what was chosen."""
    taken = set(chosen)
    if taken & set(MEMORY):
        taken.update(MEMORY)
    if gpus is not None or any(_count(name, chosen[name]) for name in GPUS if name in chosen):
        taken.update(name for name in GPUS if name in inherited and _count(name, inherited[name]))
    return {name: value for name, value in inherited.items() if name not in taken}


def _gpus(config: Config, chosen: Options, nodes: list[int]) -> int | None:
    """GPUs of a node, None where nothing says so; adds the option for the key where no other one asks for them."""
    wanted, counts = config.cluster.gpus_per_node, {}
    for name in GPUS:
        if name in chosen and (count := _count(name, chosen[name])) is not None:
            counts[name] = count
    if counts.pop("gpus-per-task", 1) > 1:
        raise UserError(
            "--gpus-per-task of cluster.sbatch must be 1: a rank has one GPU; set cluster.gpus_per_node=N"
        )
    if "gpus" in counts:
        counts["gpus"] = _share(counts["gpus"], nodes)
    if "gpus-per-task" in chosen and not counts:
        counts["gpus-per-task"] = config.cluster.ranks_per_node or wanted or 1
    for name, count in counts.items():
        if count != (first := next(iter(counts.values())) if wanted is None else wanted):
            raise UserError(
                f"--{name}={chosen[name]} asks for {count} GPUs a node where {first} are asked for otherwise "
                "(cluster.gpus_per_node, cluster.sbatch, SBATCH_* variables); keep one"
            )
    if wanted and not counts:
        chosen["gpus-per-node"] = str(wanted)
    return wanted if wanted is not None else next(iter(counts.values()), None)


def _share(total: int, nodes: list[int]) -> int:
    """GPUs of each of the nodes."""
    if len(nodes) > 1 or total % nodes[0]:
        raise UserError(
            f"--gpus={total} cannot be shared by cluster.nodes={nodes}; set cluster.gpus_per_node=N"
        )
    return total // nodes[0]


def _count(name: str, value: str | None) -> int | None:
    """The GPUs in a value such as 4, a100:4 or, for --gres, gpu:a100:4,nvme:1; None where it speaks of none."""
    counts = []
    for part in (value or "").split(","):
        kind, *rest = part.strip().lower().removeprefix("gres/").replace("=", ":").split(":")
        if name != "gres":
            counts.append(_number(name, value, rest[-1] if rest else kind))
        elif kind == "gpu":
            counts.append(_number(name, value, rest[-1]) if rest and rest[-1][:1].isdigit() else 1)
        elif kind in ("mps", "shard"):  # parts of one GPU
            counts.append(1)
    return sum(counts) if counts else None


def _number(name: str, value: str | None, text: str) -> int:
    if not text.isdigit():
        raise UserError(
            f"--{name}={value} has no number of GPUs that can be read; set cluster.gpus_per_node=N"
        )
    return int(text)


def _cpus(chosen: Options) -> int | None:
    value = chosen.get("cpus-per-task")
    if value is None:
        return None
    if not value.isdigit() or int(value) < 1:
        raise UserError(
            f"--cpus-per-task={value} of cluster.sbatch is no number; set cluster.cpus_per_rank=N"
        )
    return int(value)
