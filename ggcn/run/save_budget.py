"""How often a run can afford to save a checkpoint."""

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
    """seconds that the last checkpoint took; 0: none yet"""
    last_save: float = field(default_factory=lambda: time.monotonic())
    warned: bool = False

    def allows_save(self) -> bool:
        """Whether a checkpoint may be saved now; warns the first time that it may not."""
        elapsed = time.monotonic() - self.last_save
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

    def record_save(self, began: float) -> None:
        """A save that began at `began` (time.monotonic) is done."""
        self.save_s, self.last_save = time.monotonic() - began, time.monotonic()
