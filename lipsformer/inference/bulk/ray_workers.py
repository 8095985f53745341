"""Workers of a bulk prediction on the nodes of a Ray cluster; the driver lists, commits and writes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import os
from collections.abc import Callable
from typing import Any

from lipsformer.inference.predictor import load_predictor
from lipsformer.system.console import say
from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.system.extras import require

from .pipeline import IN_FLIGHT, Block, Pipeline, Rows
from .settings import BulkOptions, identity

__all__ = ["RayWorkers", "WorkerOptions"]

START_SECONDS = 300.0  # for a node to load the model; a larger cluster may have to fetch it first
RESTARTS = 3  # of a worker's process, on the same node


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How each worker loads the model: see `load_predictor`. It has as many threads as Ray gives it CPUs."""

    device: str = "auto"
    precision: str | None = None


class Worker:
    """What runs on a node: the pipeline of one machine."""

    def __init__(self, options: BulkOptions, load: WorkerOptions, cpus: int) -> None:
        self.predictor = load_predictor(options.model, load.device, load.precision, cpus)
        self.pipeline = Pipeline(self.predictor, options, processes=cpus)
        self.options = options
        self._started: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, Any]:
        """Starts the decoders once, and says what decides this worker's rows."""
        self._started = self._started or asyncio.create_task(self.pipeline.start())
        await self._started
        return identity(self.predictor, self.options)

    async def compute(self, block: Block) -> Rows:
        """The rows of a block; one that takes the place of another worker may get blocks before it has started."""
        await self.start()
        return await self.pipeline.compute(block)


@dataclasses.dataclass(eq=False)
class _Node:
    """A worker on a node, and how many blocks it has."""

    name: str
    start: Callable[[], Any]
    actor: Any
    restarts: int = 0
    blocks: int = 0


class RayWorkers:
    """One worker on each node of a cluster, with all its CPUs and GPUs: the pipeline that runs on one machine.

    A block whose worker dies is computed again, on the same node or on another one. Rows are committed by the driver
    alone, so that none is missing and none comes twice.

    Args:
        options: of the prediction; every node must find the model and the sources under the same names.
        load: how workers load the model.
        expected: `identity` of the driver's predictor. A worker that would give other rows is refused.
        address: of the cluster, as in `ray.init`; None starts Ray on this machine.

    Raises:
        InputError: if Ray is missing, or the cluster cannot be reached.
    """

    def __init__(
        self, options: BulkOptions, load: WorkerOptions, expected: dict[str, Any], address: str | None
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        require("ray", what="--engine ray")
        self.ray = importlib.import_module("ray")
        self.options, self.load, self.expected, self.address = options, load, expected, address
        self.nodes: list[_Node] = []
        self.changed = asyncio.Condition()

    @property
    def window(self) -> int:
        """Blocks in flight."""
        return IN_FLIGHT * max(1, len(self.nodes))

    async def start(self) -> None:
        """Starts a worker on each node, and returns when one is ready; the others join later.

        Raises:
            InputError: if the cluster cannot be reached or has no free CPUs, or a worker would give other rows.
        """
        ray = self.ray
        try:
            ray.init(address=self.address, logging_level="error", log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"--address {self.address or 'local'}: no Ray cluster there ({reason})") from None
        found = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not found:
            raise InputError("--engine ray: no node of the cluster has a CPU for a worker; start one with --num-cpus")
        for node in found:
            start = self._starter(node)
            self.nodes.append(_Node(name=node["NodeManagerAddress"], start=start, actor=start()))
        for node in list(self.nodes):
            try:
                own = await asyncio.wait_for(node.actor.start.remote(), START_SECONDS)
            except TimeoutError:
                self.nodes.remove(node)
                say(
                    f"{node.name}: no worker after {START_SECONDS:.0f} s, its CPUs may be in use; left out", always=True
                )
            except ray.exceptions.RayTaskError as error:
                raise InputError(f"{node.name}: {_cause(error)}") from None
            except ray.exceptions.RayError as error:
                self.nodes.remove(node)
                say(f"{node.name}: its worker ended ({_cause(error)}); left out", always=True)
            else:
                if differing := [name for name, value in self.expected.items() if own.get(name) != value]:
                    raise InputError(f"{node.name}: would give other rows than this machine ({', '.join(differing)})")
        if not self.nodes:
            raise InputError("--engine ray: no node could start a worker; the lines above say why")
        say(f"Ray: {len(self.nodes)} of {len(found)} nodes compute", always=True)

    async def compute(self, block: Block) -> Rows:
        """The rows of a block, from the worker with the fewest blocks.

        Raises:
            LipsFormerError: if no worker is left, or a worker cannot continue.
        """
        while True:
            node = await self._free_node()
            actor = node.actor
            try:
                rows: Rows = await actor.compute.remote(block)
            except self.ray.exceptions.RayTaskError as error:
                raise LipsFormerError(f"{node.name}: {_cause(error)}; run the same command again to resume") from None
            except self.ray.exceptions.RayError:
                await self._replace(node, actor)
            else:
                return rows
            finally:
                node.blocks -= 1
                async with self.changed:
                    self.changed.notify_all()

    async def close(self) -> None:
        """Ends all workers, and leaves the cluster."""
        for node in self.nodes:
            self._end(node)
        self.ray.shutdown()

    def _end(self, node: _Node) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(node.actor)

    def _starter(self, node: dict[str, Any]) -> Callable[[], Any]:
        """A function that starts a worker on a node."""
        cpus, gpus = int(node["Resources"]["CPU"]), int(node["Resources"].get("GPU", 0))
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        remote = self.ray.remote(Worker).options(
            num_cpus=cpus,
            num_gpus=min(gpus, 1),
            max_concurrency=IN_FLIGHT,
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        return lambda: remote.remote(self.options, self.load, cpus)

    async def _free_node(self) -> _Node:
        async with self.changed:
            while True:
                if not self.nodes:
                    raise LipsFormerError("no worker is left; run the same command again to resume")
                node = min(self.nodes, key=lambda one: one.blocks)
                if node.blocks < IN_FLIGHT:
                    node.blocks += 1
                    return node
                await self.changed.wait()

    async def _replace(self, node: _Node, actor: Any) -> None:
        """Starts the worker of a node again, once for all blocks that it had; a node that is gone is left out."""
        while node in self.nodes and node.actor is actor:
            if node.restarts == RESTARTS:
                self.nodes.remove(node)
                self._end(node)  # blocks that wait for it go to the others
                say(f"{node.name}: its worker is gone; the others compute its images", always=True)
                return
            node.restarts += 1
            node.actor = actor = node.start()
            try:
                await asyncio.wait_for(actor.start.remote(), START_SECONDS)
            except TimeoutError:
                node.restarts = RESTARTS
            except self.ray.exceptions.RayError:
                continue
            else:
                return


def _cause(error: BaseException) -> str:
    """What a Ray error says in the end: the last line of a traceback, without the exception's name if it is ours."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.removeprefix(f"{InputError.__module__}.InputError: ")[:300]
