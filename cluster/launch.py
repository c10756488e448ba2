"""Starts or resumes a run (see --help), with the code of this checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn.cli.launch import main
from ggcn.console import run_cli

if __name__ == "__main__":
    run_cli(main)
