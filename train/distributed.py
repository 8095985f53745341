"""The processes of one training: alone, or many on one host or several, as `torchrun` starts them."""

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

LOST = ("gloo", "NCCL", "Connection closed", "Connection reset")  # in what PyTorch says when a process has gone


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """This process among those of its training: number `rank` of `count`, computing on `device`."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are averaged over the processes; all begin with the weights of the first."""
        if self.world_size == 1:
            return model
        where = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, where, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def no_sync(self, model: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Where `wanted`, gradients that are computed inside are only added up here, to be averaged with the next."""
        if wanted and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, content: bytes | None, source: int = 0) -> bytes | None:
        """What process `source` gives, for all of them; nothing if it gives nothing."""
        if self.world_size == 1:
            return content
        given = b"" if content is None or self.rank != source else content
        size = torch.tensor([-1 if content is None else len(given)], device=self.device)
        dist.broadcast(size, source)
        if int(size) < 0:
            return None
        values = np.frombuffer(given, np.uint8) if self.rank == source else np.empty(int(size), np.uint8)
        buffer = torch.from_numpy(values.copy()).to(self.device)
        dist.broadcast(buffer, source)
        return buffer.cpu().numpy().tobytes()

    def all_gather(self, lines: Sequence[str]) -> list[str]:
        """The lines of all processes, for all of them."""
        texts = ["\n".join(lines).encode("utf-8", "surrogateescape")]
        if self.world_size > 1:
            texts = [self.broadcast(texts[0], source) or b"" for source in range(self.world_size)]
        return [line for text in texts for line in text.decode("utf-8", "surrogateescape").splitlines()]

    def check_same(self, value: str, what: str) -> None:
        """Refuses a `value` that differs from the first process's.

        Raises:
            InputError: in the processes that have another one.
        """
        if self.broadcast(value.encode()) != value.encode():
            raise InputError(f"process {self.rank}: {what} is not that of process 0; give all processes the same")


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[DistributedContext]:
    """This process among those that `torchrun` started with it; alone if it was not started so.

    NCCL joins GPUs, one to a process; gloo joins CPUs.

    Raises:
        InputError: if `device` cannot be had.
    """
    target = torch_device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield DistributedContext(rank=0, world_size=1, device=target)
        return
    if target.type == "cuda":
        target = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(target)
    store, rank, count = next(rendezvous("env://"))
    # After a restart the store may be the same, and hold the addresses of those that have gone: a name of its own.
    attempt = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo", store=attempt, rank=rank, world_size=count)
    try:
        yield DistributedContext(rank=rank, world_size=count, device=target)
        dist.barrier()  # leave together: one that goes while others still work can abort on its way out
    except RuntimeError as error:  # gloo and NCCL have no type in common
        if not any(word in str(error) for word in LOST):
            raise
        raise LipsFormerError(
            f"process {os.environ['RANK']}: another process of the training has gone; started again, it goes on from "
            "the last state (torchrun --max-restarts does that by itself)"
        ) from None
    finally:
        dist.destroy_process_group()
