"""`python -m ggcn`, the same as the console script `ggcn`."""

from ggcn.cli.main import console_script

if __name__ == "__main__":
    console_script()
