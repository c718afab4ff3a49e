"""docker/compose.yaml without Docker; see tests/cluster/containers.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.containers import main

if __name__ == "__main__":
    sys.exit(main())
