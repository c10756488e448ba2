"""Whether a run's data are there and fit it: on a login node without torch, and before the ranks of a local run."""

from ggcn.config.interpolation import refuse_undefined
from ggcn.config.schema import Config
from ggcn.data import manifest
from ggcn.data.decoding import refuse_smaller, view
from ggcn.data.manifest import Manifest
from ggcn.data.order import of_counts
from ggcn.paths import is_local, undefined


def data(config: Config, remote: bool = False) -> None:
    """Checks that shards are there, whole by size, enough for the lanes and of a size and colours that fit.

    Remote ones are asked for their manifest if `remote`, which takes a second of imports; else the ranks do it.
    Raises UserError with the first fault.
    """
    config.data.check()
    if remote:  # the ranks run here: a variable that is missing now will be missing then
        refuse_undefined(config)
    found = {}
    for folder, weight in config.data.folders().items():
        told = _manifest(folder, config, remote)
        if told:
            found[folder] = told, weight
    manifests, weights = [told for told, _ in found.values()], [weight for _, weight in found.values()]
    if not manifests:
        return
    manifest.channels(manifests)
    of_counts(
        [told.counts for told in manifests], weights, config.seed, config.lanes, config.data.shuffle_block
    )
    for folder, (told, _) in found.items():
        view(folder, told, config.model.grids[-1], config.data.crop)
        refuse_smaller(folder, told, config.model.grids, config.data)


def _manifest(folder: str, config: Config, remote: bool) -> Manifest | None:
    path = folder.removeprefix("file://")
    if undefined(folder) and is_local(folder):
        return None  # known to the ranks alone
    if "://" not in path and not path.startswith("pipe:"):
        found = manifest.load(path)
        manifest.check_files(found)
        return found
    if not remote:
        return None
    from ggcn.data import fetch

    return fetch.load_manifest(folder, config.data)
