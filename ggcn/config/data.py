"""The settings of the data, documented field by field; importable without torch."""

from dataclasses import dataclass, field
from math import inf

from ggcn.config.fields import choice, faults, ranged
from ggcn.errors import UserError
from ggcn.redact import shard_folder


@dataclass
class DataConfig:
    """What a run reads and how."""

    shards: str = ""
    """folder made by make_shards: a path, an http(s):// address, an object store's URL (through fsspec) or,
    with allow_pipe, `pipe:COMMAND` where {} stands for the file's name; empty when `mixture` names several"""
    mixture: dict[str, float] = field(default_factory=dict)
    """several folders with weights, for example {shards/faces: 3, shards/scenes: 1}; instead of `shards`"""
    size: int = 0
    """pixels along a side at which the images are trained on, a power of two from 4 on: the model gets grids for it.
    0: the size of the model's own finest grid; larger stored images are then refused until this or model.grids is
    set"""
    holdout: str = ""
    """shards of images that are never trained on, for R^2 on held-out images; empty: the folder `holdout` in
    that of local shards, where make_shards --holdout put one"""
    flip: bool = True
    """show half of the images mirrored, drawn again each epoch; right for faces and most scenes, wrong for
    anything with writing in it"""
    crop: int = ranged(0, 0)
    """side, in stored pixels, of a random square out of each image, averaged down to the training size; 0 takes
    the whole image"""
    workers: int = ranged(1, 0)
    """loader processes per rank; one decodes faster than sampling consumes, and 0 reads in the rank itself"""
    prefetch: int = ranged(2, 1)
    """steps each worker may be ahead: two hide the odd slow read and cost two batches of memory"""
    shuffle_block: int = ranged(4096, 1)
    """samples shuffled together inside a lane: a few shards' worth mix well while reads stay in few files;
    part of the order, so another value is another run"""
    verify: str = choice("sizes", "full")
    """before training compare each local shard's size with the manifest (sizes, a moment), or its sha256
    too (full, reads everything once, shared among the ranks)"""
    max_bad_fraction: float = ranged(0.01, 0, 1)
    """undecodable images are replaced, counted and listed up to this fraction of those seen; above it something
    is wrong with the data and the run stops"""
    cache_dir: str = ""
    """folder on the node's own disk where whole shards are kept; for shards on a network, needed for pipe:"""
    cache_gb: float = ranged(50.0, 0, inf, "(]")
    """the cache's limit, 10^9 bytes, for all ranks of a node together; the longest unused shard is removed first"""
    retries: int = ranged(5, 0)
    """further attempts after a failed read that may succeed later; with doubling pauses from `backoff`, five wait
    16 s"""
    backoff: float = ranged(0.5, 0)
    """seconds before the first further attempt; each pause is about twice the last (up to half more or less, so that
    ranks do not all come back at once), 30 s at most"""
    allow_pipe: bool = False
    """let `pipe:` run its command in a shell; off, since a config that was sent to you could run anything. Only what
    the launcher froze counts, and in tools the flag --allow-pipe: never what a run or a file of somebody else says"""

    def folders(self) -> dict[str, float]:
        """Folders and their weights. Raises UserError unless exactly one of shards and mixture is given."""
        if bool(self.shards) == bool(self.mixture):
            raise UserError("give either data.shards (one folder) or data.mixture (several with weights)")
        return dict(self.mixture) or {self.shards: 1.0}

    def check(self) -> None:
        """Raises UserError for a value outside its range, and unless the folders are as `folders` requires."""
        self.check_ranges()
        self._check_pipes()

    def check_ranges(self) -> None:
        """Raises UserError for a value outside its range."""
        for sentence in faults(self, "data."):
            raise UserError(sentence)
        if self.size and (self.size < 4 or self.size & (self.size - 1)):
            raise UserError(f"data.size={self.size} must be a power of two from 4 on")

    def refuse_pipe(self, folder: str) -> None:
        """Raises UserError when a folder of shards is a shell command and this config does not allow those."""
        if folder.startswith("pipe:") and not self.allow_pipe:
            raise UserError(
                f"{shard_folder(folder)} runs a shell command; if you trust it, set data.allow_pipe=true, or "
                "--allow-pipe in a tool"
            )

    def _check_pipes(self) -> None:
        for folder in self.folders():
            self.refuse_pipe(folder)
            if folder.startswith("pipe:") and not self.cache_dir:
                raise UserError(
                    f"{shard_folder(folder)} can only be read from front to back; set data.cache_dir"
                )
