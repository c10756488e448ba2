"""How often a run can afford to save a checkpoint: by the seconds that training waits for it, not those in which it is
written in the background."""

import logging
import time
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass
class SaveBudget:
    """Limits the time for saving to a share of the time that training takes."""

    max_share: float
    """largest share of the time between two checkpoints that saving one may take; 0: any"""
    save_s: float = 0.0
    """seconds that training waited for the last checkpoint; 0: none yet"""
    last_save: float = field(default_factory=lambda: time.monotonic())
    warned: bool = False

    def allows_save(self, busy: bool = False) -> bool:
        """Whether a checkpoint may be saved now; warns the first time that it may not. `busy`: the one before is still
        being written, for which training would have to wait."""
        elapsed = time.monotonic() - self.last_save
        if busy and self.max_share:
            self._warn_busy(elapsed)
            return False
        allowed = self.max_share == 0 or self.save_s <= self.max_share * elapsed
        if not allowed and not self.warned:
            self.warned = True
            log.warning(
                "a checkpoint takes %.1f s, more than checkpoint.max_overhead=%g of the %.1f s since the last; saving "
                "less often than checkpoint.every says",
                self.save_s,
                self.max_share,
                elapsed,
            )
        return allowed

    def _warn_busy(self, elapsed: float) -> None:
        if not self.warned:
            self.warned = True
            log.warning(
                "the checkpoint before this one is still being written, after %.1f s; saving less often than "
                "checkpoint.every says",
                elapsed,
            )

    def record_save(self, began: float) -> None:
        """Training goes on after a save that began at `began` (time.monotonic)."""
        self.save_s, self.last_save = time.monotonic() - began, time.monotonic()
