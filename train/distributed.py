"""Data-parallel training with `torch.distributed`: one process, or many on one or several hosts under `torchrun`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.system.hardware import torch_device

__all__ = ["DistributedContext", "init_distributed"]

# Keeps each process group until the interpreter ends. In torch 2.13, the reducer of DistributedDataParallel may drop
# the last reference otherwise, and it destroys a gloo group with the GIL held. If a thread of the group is just freeing
# a tensor, it waits for the GIL, and the destructor for the thread: a training that had finished hung. The group's own
# destructor releases the GIL.
_GROUPS: list[object] = []

CONNECTION_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset")  # in errors when a process has died


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """Rank, world size and device of this process."""

    rank: int
    world_size: int
    device: torch.device

    def __str__(self) -> str:
        return self.device.type + (f" x {self.world_size}" if self.world_size > 1 else "")

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model in DistributedDataParallel: gradients are averaged, and all ranks start from rank 0's weights."""
        if self.world_size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True)
        wrapped.broadcast_buffers = False  # they never change; the constructor's argument was renamed after torch 2.11
        return wrapped

    def no_sync(self, model: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """If `wanted`, a context without gradient synchronization: gradients accumulate until the next step outside."""
        if wanted and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sums `values` over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, content: bytes | None, source: int = 0) -> bytes | None:
        """The content that rank `source` passes, on all ranks; None if it passes None."""
        if self.world_size == 1:
            return content
        own = b"" if content is None or self.rank != source else content
        size = torch.tensor([-1 if content is None else len(own)], device=self.device)
        dist.broadcast(size, source)
        if int(size) < 0:
            return None
        values = np.frombuffer(own, np.uint8) if self.rank == source else np.empty(int(size), np.uint8)
        buffer = torch.from_numpy(values.copy()).to(self.device)
        dist.broadcast(buffer, source)
        return buffer.cpu().numpy().tobytes()

    def all_gather(self, lines: Sequence[str]) -> list[str]:
        """The lines of all ranks, on all ranks."""
        texts = ["\n".join(lines).encode("utf-8", "surrogateescape")]
        if self.world_size > 1:
            texts = [self.broadcast(texts[0], source) or b"" for source in range(self.world_size)]
        return [line for text in texts for line in text.decode("utf-8", "surrogateescape").splitlines()]

    def check_same(self, value: str, what: str) -> None:
        """Checks that `value` is the same on all ranks.

        Raises:
            InputError: on the ranks whose value differs from rank 0's.
        """
        if self.broadcast(value.encode()) != value.encode():
            raise InputError(f"process {self.rank}: {what} differs from that of process 0; give all processes the same")


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[DistributedContext]:
    """Joins the process group that `torchrun` set up; without torchrun, a group of this process alone.

    The backend is NCCL for GPUs, one per process, and gloo for CPUs.

    Raises:
        InputError: if `device` is not available.
        LipsFormerError: if another process died.
    """
    target = torch_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield DistributedContext(rank=0, world_size=1, device=target)
        return
    if target.type == "cuda":
        target = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(target)
    store, rank, world_size = next(rendezvous("env://"))
    # After a restart the store may still hold the addresses of dead processes: each attempt gets its own prefix.
    attempt = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(
        "nccl" if target.type == "cuda" else "gloo", store=attempt, rank=rank, world_size=world_size
    )
    _GROUPS.append(dist.group.WORLD)
    try:
        yield DistributedContext(rank=rank, world_size=world_size, device=target)
        dist.barrier()  # leave together: a process that leaves while others still work can abort on exit
    except RuntimeError as error:  # gloo and NCCL share no exception type
        if not any(word in str(error) for word in CONNECTION_LOST):
            raise
        raise LipsFormerError(
            f"process {os.environ['RANK']}: another process of the training has died; run the same command "
            "again to resume from the last state (torchrun --max-restarts restarts by itself)"
        ) from None
    finally:
        dist.destroy_process_group()
