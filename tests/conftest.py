"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a token file in the home folder is no business of a test
os.environ.setdefault("RAY_worker_niceness", "0")  # beside other tests, nicer workers would starve
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from influray.cli import printing

if TYPE_CHECKING:
    from tests.object_store import Store

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: its kernels run on the CPU


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real instruction data, where the machine has one."""
    folder = os.environ.get("INFLURAY_DATA")
    if not folder:
        pytest.skip("INFLURAY_DATA is unset: no real instruction data on this machine")
    return Path(folder)


@pytest.fixture(autouse=True)
def consoles_of_each_test() -> Iterator[None]:
    """Let the consoles of the command line print to the streams of the next test: `main` ties them to those of one."""
    yield
    for console in (printing.out, printing.err):
        console._file = None


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A local S3 server with an empty bucket."""
    from tests.object_store import serving

    with serving() as found:
        yield found
