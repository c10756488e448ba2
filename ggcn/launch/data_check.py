"""Checks a run's data before it starts: on a login node without torch, and before the ranks of a local run."""

from ggcn.config.interpolation import refuse_undefined
from ggcn.config.schema import Config
from ggcn.data import held_out, manifest, manifest_file, verification
from ggcn.data.decoding import image_decoder, refuse_downsampling
from ggcn.data.manifest import Manifest
from ggcn.data.order import of_counts
from ggcn.paths import is_local, undefined


def check(config: Config, remote: bool = False) -> None:
    """Checks that the shards exist, are complete by size, suffice for the lanes and have a size and channels that fit.

    Manifests of remote ones are read if `remote`, which takes a second of imports; otherwise the ranks do it.
    Raises UserError for the first problem.
    """
    config.data.check()
    held_out.check(config)
    if remote:  # the ranks run here, with the same environment variables
        refuse_undefined(config)
    manifests, weights = {}, []
    for folder, weight in config.data.folders().items():
        data = _manifest(folder, config, remote)
        if data:
            manifests[folder] = data
            weights.append(weight)
    if not manifests:
        return
    manifest.channels([*manifests.values()])
    counts = [data.counts for data in manifests.values()]
    of_counts(counts, weights, config.seed, config.lanes, config.data.shuffle_block)
    for folder, data in manifests.items():
        image_decoder(folder, data, config.model.grids[-1], config.data.crop)
        refuse_downsampling(folder, data, config.model.grids, config.data)


def _manifest(folder: str, config: Config, remote: bool) -> Manifest | None:
    """The manifest of a folder, its files checked by size; None if only the ranks can read it."""
    path = folder.removeprefix("file://")
    if undefined(folder) and is_local(folder):
        return None  # only the ranks know its environment variables
    if "://" not in path and not path.startswith("pipe:"):
        data = manifest_file.load(path)
        verification.check_files(data)
        return data
    if not remote:
        return None
    from ggcn.data import shard_index

    return shard_index.load_manifest(folder, config.data)
