"""On the path of a run's processes: a rank that gets USR1 hangs for ever, as inside a library that waits."""

import signal
import time

signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1e6))
