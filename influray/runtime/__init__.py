"""Everything that touches Ray: the cluster, the shard pool and its workers, the selection driver, training."""
