"""The resources that a run's jobs request from SLURM: nodes, ranks, GPUs, and the options of sbatch for them."""

from dataclasses import dataclass
from typing import Any

from ggcn.config.schema import Config
from ggcn.config.validation import acceptable_nodes, validate_world
from ggcn.errors import UserError
from ggcn.launch import sbatch_options
from ggcn.launch.sbatch_options import Options

GPUS = ("gpus-per-node", "gres", "gpus", "gpus-per-task")
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
NO_GPU = (
    "the job requests no GPU and trains on CPU cores; set cluster.gpus_per_node=N, or 0 if that is intended"
)


@dataclass(frozen=True)
class ResourceRequest:
    """The resources of one job of a run."""

    nodes: list[int]
    """acceptable numbers of nodes, largest first"""
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_rank: int | None
    options: Options
    """for sbatch: from config keys, from cluster.sbatch, and from the user's SBATCH_* variables"""
    warnings: list[str]

    @classmethod
    def of(cls, config: Config) -> "ResourceRequest":
        """The request of a config. Raises UserError for contradictions."""
        cluster, nodes = config.cluster, acceptable_nodes(config)
        options = _merge(_from_keys(config), sbatch_options.read(cluster.sbatch))
        inherited, warnings = sbatch_options.environment()
        options |= _not_overridden(inherited, options, cluster.gpus_per_node)
        gpus = _gpus_per_node(config, options, nodes)
        ranks = cluster.ranks_per_node or gpus or 1
        if gpus and ranks > gpus:
            raise UserError(
                f"cluster.ranks_per_node={ranks} needs as many GPUs, and {gpus} a node are requested; a rank has one"
            )
        if gpus and ranks < gpus:
            warnings.append(
                f"cluster.ranks_per_node={ranks} leaves {gpus - ranks} of {gpus} GPUs a node idle"
            )
        if gpus is None:
            warnings.append(NO_GPU)
        return cls(nodes, ranks, gpus or 0, _cpus_per_rank(options), options, warnings)

    def validate(self, config: Config) -> None:
        """Raises UserError unless the lanes divide equally among the ranks of every acceptable number of nodes."""
        for nodes in self.nodes:
            validate_world(config, nodes * self.ranks_per_node)

    def facts(self) -> dict[str, Any]:
        """The fields of the event "submit"."""
        return {
            "nodes": self.nodes,
            "ranks_per_node": self.ranks_per_node,
            "gpus_per_node": self.gpus_per_node,
        }


def _from_keys(config: Config) -> Options:
    """The options that have config keys, where these are set."""
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


def _merge(keys: Options, sbatch: Options) -> Options:
    """The options of config keys and of cluster.sbatch; raises UserError where they differ."""
    key_names = {"cpus-per-task": "cpus_per_rank"}
    for name in keys.keys() & sbatch.keys():
        if keys[name] != sbatch[name]:
            raise UserError(
                f"cluster.{key_names.get(name, name)}={keys[name]} and --{name}={sbatch[name]} of cluster.sbatch "
                "disagree; keep the first"
            )
    if "mem" in keys and (other := [name for name in MEMORY[1:] if name in sbatch]):
        raise UserError(
            f"cluster.mem={keys['mem']} and --{other[0]} of cluster.sbatch exclude each other; keep one"
        )
    return keys | sbatch


def _not_overridden(inherited: Options, options: Options, gpus: int | None) -> Options:
    """The inherited options that `options` and `gpus`, cluster.gpus_per_node, do not override."""
    overridden = set(options)
    if overridden & set(MEMORY):
        overridden.update(MEMORY)
    if gpus is not None or any(_gpu_count(name, options[name]) for name in GPUS if name in options):
        overridden.update(name for name in GPUS if name in inherited and _gpu_count(name, inherited[name]))
    return {name: value for name, value in inherited.items() if name not in overridden}


def _gpus_per_node(config: Config, options: Options, nodes: list[int]) -> int | None:
    """GPUs of a node, None where nothing requests any. Adds the option for cluster.gpus_per_node where no other one
    requests them."""
    configured, counts = config.cluster.gpus_per_node, {}
    for name in GPUS:
        if name in options and (count := _gpu_count(name, options[name])) is not None:
            counts[name] = count
    if counts.pop("gpus-per-task", 1) > 1:
        raise UserError(
            "--gpus-per-task of cluster.sbatch must be 1: a rank has one GPU; set cluster.gpus_per_node=N"
        )
    if "gpus" in counts:
        if config.cluster.spares:
            raise UserError(
                f"--gpus={options['gpus']} counts the GPUs of all nodes, and cluster.spares asks for more nodes; set "
                "cluster.gpus_per_node=N instead"
            )
        counts["gpus"] = _divide(counts["gpus"], nodes)
    if "gpus-per-task" in options and not counts:
        counts["gpus-per-task"] = config.cluster.ranks_per_node or configured or 1
    for name, count in counts.items():
        if count != (first := next(iter(counts.values())) if configured is None else configured):
            raise UserError(
                f"--{name}={options[name]} requests {count} GPUs a node where {first} are requested otherwise "
                "(cluster.gpus_per_node, cluster.sbatch, SBATCH_* variables); keep one"
            )
    if configured and not counts:
        options["gpus-per-node"] = str(configured)
    return configured if configured is not None else next(iter(counts.values()), None)


def _divide(total: int, nodes: list[int]) -> int:
    """GPUs of each node."""
    if len(nodes) > 1 or total % nodes[0]:
        raise UserError(
            f"--gpus={total} cannot be divided among cluster.nodes={nodes}; set cluster.gpus_per_node=N"
        )
    return total // nodes[0]


def _gpu_count(name: str, value: str | None) -> int | None:
    """The GPUs in a value such as 4, a100:4 or, for --gres, gpu:a100:4,nvme:1; None where it contains none."""
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


def _cpus_per_rank(options: Options) -> int | None:
    value = options.get("cpus-per-task")
    if value is None:
        return None
    if not value.isdigit() or int(value) < 1:
        raise UserError(
            f"--cpus-per-task={value} of cluster.sbatch is not a number; set cluster.cpus_per_rank=N"
        )
    return int(value)
