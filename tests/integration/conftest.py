"""One local Ray for all integration tests: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from influray.config import ResourcesConfig
from influray.runtime.cluster import ClusterInfo, connect


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ClusterInfo]:
    """A private cluster on this machine."""
    with connect(ResourcesConfig()) as cluster:
        assert cluster.owned, "tests want a Ray of their own; unset RAY_ADDRESS"
        yield cluster
