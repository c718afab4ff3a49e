"""A Ray cluster of several nodes on this machine; see tests/cluster/local_cluster.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.local_cluster import main

if __name__ == "__main__":
    sys.exit(main())
