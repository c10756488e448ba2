"""Runs a command on a terminal of its own."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios


def on_a_terminal(*command: object) -> str:
    """What a command writes to a terminal of 100 columns, without the colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(list(map(str, command)), stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        written = b""
        while data := _read(ours):
            written += data
    os.close(ours)
    assert process.returncode == 0, written
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the last process has closed it
        return b""
