"""Several processes that train copies of one model, and share what they learnt now and then.

Processes of one thread each do not wait for each other within a step, as threads do.
Source: local SGD (arXiv:1805.09767), of the optimizers' momenta too.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class Peers:
    """The processes of a run, seen from one of them: `rank`, counted from 0, of `count`."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def share(self, tensors: dict[str, Tensor], late: bool) -> bool:
        """Put the mean over all processes into each tensor; returns whether any is late.

        Every process must come here after the same step.
        """
        for tensor in tensors.values():
            dist.all_reduce(tensor.data)
            tensor.data /= self.count
        votes = torch.tensor(int(late))
        dist.all_reduce(votes)
        return bool(votes)


def run_together(work: Callable[..., None], count: int, args: tuple[Any, ...]) -> None:
    """Call `work(peers, *args)` in `count` processes, or in this one with None for its peers.

    Raises:
        torch.multiprocessing.ProcessRaisedException: one of them failed; the others are ended.
    """
    if count == 1:
        work(None, *args)
        return
    with tempfile.TemporaryDirectory() as folder:
        given = (work, count, Path(folder) / "meeting", args)
        started = spawn(_begin, given, nprocs=count, join=False)
        try:
            while not started.join():
                pass
        finally:
            for process in started.processes:
                process.terminate()
                process.join()


def _begin(
    rank: int, work: Callable[..., None], count: int, meeting: Path, args: tuple[Any, ...]
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    store = dist.FileStore(str(meeting), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    work(Peers(rank, count), *args)
    dist.destroy_process_group()
