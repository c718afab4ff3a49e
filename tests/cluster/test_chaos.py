"""Every kind of fault once, on a real cluster of several nodes: the run ends with the bytes of an undisturbed one."""

from __future__ import annotations

import pytest

from tests.cluster.chaos import KINDS, WORKLOADS, Fault, chaos
from tests.cluster.local_cluster import unavailable

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")]

RUNS = (
    (Fault("featurize", "actor", 0.2), Fault("score", "driver", 0.4), Fault("select", "truncate", 0.0)),
    (Fault("featurize", "disk", 0.3), Fault("score", "node", 0.1), Fault("select", "sigterm", 0.1)),
    (Fault("featurize", "raylet", 0.2), Fault("score", "memory", 0.1)),
)


def test_every_kind_of_fault_ends_with_the_bytes_of_the_undisturbed_run():
    assert {fault.kind for run in RUNS for fault in run} == set(KINDS)
    (workload,) = [one for one in WORKLOADS if one.name == "ngram"]
    with chaos(nodes=2, say=lambda text: None) as one:
        one.prepare(workload)
        outcomes = [one.run(workload, list(faults), seed) for seed, faults in enumerate(RUNS)]
    for outcome in outcomes:
        assert outcome.problems == []
    hit = {fault.kind for outcome in outcomes for fault in outcome.faults if fault.what}
    assert len(hit) >= 5, f"most faults came when there was nothing to hit: {hit}"  # a step may end sooner than usual
