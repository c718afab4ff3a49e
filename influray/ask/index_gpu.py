"""Which indexes are searched on a GPU, and how they get there; they are built on the CPU, and their files are the same.

What a search finds is ranked again by exact products whatever found it, so a GPU changes the time and no score.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from influray.ask.index_kinds import faiss_module

logger = logging.getLogger(__name__)

GPU_KINDS = ("flat", "ivf")  # of what index_factory makes, faiss (1.15, GpuCloner.cpp) has a form for GPUs of some
GPU_MOST = 2047  # candidates of a query, and lists that it looks into (faiss: GPU_MAX_SELECTION_K)
SCRATCH = 2**31  # bytes: faiss takes 1.5 GiB for its own work, the rest is for queries and answers
GROWTH = 1.25  # of an index of lists, which a GPU pads


def device_for(kind: str, size: int) -> str:
    """Return where this process searches an index of a kind whose files have `size` bytes: "gpu" or "cpu".

    It is a GPU where the process sees one, faiss was built for it and has a form of the kind, and the memory is free.
    """
    faiss = faiss_module()
    if kind not in GPU_KINDS or not hasattr(faiss, "StandardGpuResources"):
        return "cpu"
    import torch

    # torch is asked first: where there is no driver, faiss ends the process when it counts GPUs (faiss issue 4251).
    if not torch.cuda.is_available() or faiss.get_num_gpus() == 0:
        return "cpu"
    free, needed = torch.cuda.mem_get_info(0)[0], int(GROWTH * size) + SCRATCH
    if needed > free:
        logger.warning(
            "the index is searched on the CPU: it takes %.1f GiB of the GPU, of which %.1f GiB are free",
            needed / 2**30,
            free / 2**30,
        )
        return "cpu"
    logger.info("the index is searched on the GPU")
    return "gpu"


def to_gpu(index: Any) -> Any:
    """Return a copy of a faiss index on the first GPU that this process sees. Searches of it must take turns."""
    return faiss_module().index_cpu_to_gpu(_resources(), 0, index)


@cache
def _resources() -> Any:
    return faiss_module().StandardGpuResources()  # one for all shards: each has 1.5 GiB of the GPU
