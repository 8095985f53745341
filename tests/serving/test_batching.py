"""Micro-batching and fault isolation: what is computed together, and what a fault affects."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from lipsformer import Preprocessing
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Outputs
from lipsformer.serving.observability import open_metrics
from lipsformer.serving.pipeline.admission import Overloaded
from lipsformer.serving.pipeline.batching import BatchQueue
from lipsformer.serving.pipeline.fault_isolation import FaultError, IsolatingRuntime, RuntimeLostError

SIZE = 2


class Runtime:
    """Answers each image's first pixel; notes its batches; waits for `gate`; fails if an image starts with 255.

    Logits of 254 and features of 253 are no numbers.

    A `broken` one fails on everything.
    """

    provider = "stand-in"

    def __init__(self, *, broken: bool = False) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = broken

    def infer(self, pixels: np.ndarray) -> Outputs:
        self.gate.wait(10)
        self.batches.append(len(pixels))
        if self.broken or (pixels[:, 0, 0, 0] == 255).any():
            raise RuntimeError("poisoned")
        logits = pixels[:, 0, 0, :1].astype(np.float32)
        return Outputs(np.where(logits == 254, np.nan, logits), np.where(logits == 253, np.inf, logits))


def image(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), value, dtype=np.uint8)


def predictor(runtime: Any) -> Predictor:
    return Predictor(
        runtime=runtime, preprocessing=Preprocessing(image_size=SIZE), classes=("a",), file=None, precision="fp32"
    )  # type: ignore[arg-type]


def run(
    scenario: Callable[[Runtime, BatchQueue], Coroutine[Any, Any, None]], max_batch: int = 4
) -> tuple[Runtime, list[str]]:
    runtime, faults = Runtime(), []
    runner = IsolatingRuntime(lambda: predictor(runtime), on_fault=faults.append)

    async def main() -> None:
        queue = BatchQueue(
            runner.run, max_batch=max_batch, metrics=open_metrics(), on_lost=lambda: faults.append("lost")
        )
        with pytest.raises(Overloaded, match="stopping"):
            await queue.infer(image(1))
        queue.start()
        await asyncio.wait_for(scenario(runtime, queue), 20)
        await queue.close()
        with pytest.raises(Overloaded, match="stopping"):
            await queue.infer(image(1))

    asyncio.run(main())
    return runtime, faults


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def scenario(_: Runtime, queue: BatchQueue) -> None:
        assert (await queue.infer(image(7))).outputs.logits[0] == 7

    assert run(scenario)[0].batches == [1]


def test_requests_gather_while_the_runtime_is_busy() -> None:
    async def scenario(runtime: Runtime, queue: BatchQueue) -> None:
        runtime.gate.clear()
        tasks = [asyncio.create_task(queue.infer(image(value))) for value in range(10)]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.outputs.logits[0] for answer in answers] == list(range(10))
        assert [answer.batch for answer in answers] == [4] * 8 + [2] * 2
        assert all(answer.started <= answer.done for answer in answers)

    assert run(scenario)[0].batches == [4, 4, 2]


@pytest.mark.parametrize("poison", [255, 254, 253])  # one raises, two are answered by what is no number
def test_a_poisoned_request_fails_alone(poison: int) -> None:
    async def scenario(_: Runtime, queue: BatchQueue) -> None:
        tasks = [asyncio.create_task(queue.infer(image(value))) for value in (1, poison, 3)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], RuntimeError)
        assert results[0].outputs.logits[0] == 1
        assert results[2].outputs.logits[0] == 3
        assert (await queue.infer(image(9))).outputs.logits[0] == 9

    runtime, faults = run(scenario)
    assert runtime.batches == [3, 1, 1, 1, 1, 1]  # the batch, a look at the runtime, each alone, and the last
    assert faults == ["retried", "failed", "retried"]


def test_a_request_that_nobody_waits_for_costs_nothing() -> None:
    async def scenario(runtime: Runtime, queue: BatchQueue) -> None:
        runtime.gate.clear()
        first = asyncio.create_task(queue.infer(image(1)))
        await asyncio.sleep(0.05)  # it runs; the next two wait
        second, third = (asyncio.create_task(queue.infer(image(value))) for value in (2, 3))
        await asyncio.sleep(0)
        second.cancel()
        runtime.gate.set()
        assert (await first).outputs.logits[0] == 1
        assert (await third).outputs.logits[0] == 3

    assert run(scenario)[0].batches == [1, 1]


def test_what_is_being_computed_when_the_server_stops_is_answered() -> None:
    async def scenario(runtime: Runtime, queue: BatchQueue) -> None:
        runtime.gate.clear()
        running = asyncio.create_task(queue.infer(image(1)))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(queue.infer(image(2)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        runtime.gate.set()
        assert (await running).outputs.logits[0] == 1
        with pytest.raises(Overloaded):
            await waiting
        await closing

    run(scenario)


def test_a_broken_runtime_is_opened_anew_and_its_batch_is_answered() -> None:
    runtimes = [Runtime(broken=True), Runtime()]
    left, faults = list(runtimes), []
    runner = IsolatingRuntime(lambda: predictor(left.pop(0)), on_fault=faults.append)
    assert [outcome[0] for outcome in runner.run([image(1), image(2)])] == [1, 2]
    assert faults == ["rebuilt", "retried", "retried"]
    assert runner.predictor.runtime is runtimes[1]


@pytest.mark.parametrize("second", [lambda: predictor(Runtime(broken=True)), lambda: 1 / 0])
def test_a_runtime_that_is_broken_for_good_ends_the_queue(second: Callable[[], Predictor]) -> None:
    left: list[Callable[[], Predictor]] = [lambda: predictor(Runtime(broken=True)), second]
    runner = IsolatingRuntime(lambda: left.pop(0)(), on_fault=lambda _: None)

    async def main() -> None:
        lost: list[bool] = []
        queue = BatchQueue(runner.run, max_batch=4, metrics=open_metrics(), on_lost=lambda: lost.append(True))
        queue.start()
        tasks = [asyncio.create_task(queue.infer(image(value))) for value in range(6)]
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, Overloaded)
            assert outcome.reason == "stopping"
        assert lost == [True]
        assert not queue.running
        await queue.close()

    asyncio.run(main())


def test_warm_up_chooses_the_smallest_size_that_is_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    runner = IsolatingRuntime(lambda: predictor(runtime), on_fault=lambda _: None)
    runner.warm_up(12)
    assert sorted(set(runtime.batches)) == [1, 2, 4, 8, 12]
    # Four images take as long as one; from there on the time grows with them.
    monkeypatch.setattr(runner, "_timed", lambda pixels: max(len(pixels), 4) * 0.01)
    assert runner.warm_up(12) == 4
    monkeypatch.setattr(runner, "_timed", lambda pixels: len(pixels) * 0.01)
    assert runner.warm_up(12) == 1


def test_warm_up_refuses_answers_that_are_none() -> None:
    class Short(Runtime):
        def infer(self, pixels: np.ndarray) -> Outputs:
            return Outputs(super().infer(pixels).logits[: len(pixels) // 2 + 1], None)

    runner = IsolatingRuntime(lambda: predictor(Short()), on_fault=lambda _: None)
    with pytest.raises(FaultError, match=r"an answer in shape \(2, 1\) to 2 images|shape"):
        runner.warm_up(8)
    nan = dataclasses.replace(
        predictor(Runtime()), runtime=type("N", (), {"infer": lambda _, p: Outputs(p[:, 0, 0, :1] * np.nan, None)})()
    )
    with pytest.raises(FaultError, match="not finite"):
        IsolatingRuntime(lambda: nan, on_fault=lambda _: None).warm_up(1)


def test_losing_the_runtime_says_why() -> None:
    runner = IsolatingRuntime(lambda: predictor(Runtime(broken=True)), on_fault=lambda _: None)
    with pytest.raises(RuntimeLostError, match="still broken after it was reopened"):
        runner.run([image(1)])
