"""Faults at random moments of small runs; see tests/cluster/chaos.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.chaos import main

if __name__ == "__main__":
    sys.exit(main())
