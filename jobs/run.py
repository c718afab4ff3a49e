"""Carry out a config as a Ray job: ray job submit --working-dir . -- python jobs/run.py configs/x.yaml [--set k=v].

The same as `influray run`; it stands here because a submitted job names a script. Inside a job Ray knows its
cluster, so no address is needed. Exit status as `influray`.
"""

import sys

from influray.cli import main

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "run", *sys.argv[1:]]
    main()
