"""The parts of tools/compare.py: what is trained, how long, with which results, and how they are shown."""
