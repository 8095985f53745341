"""Distributed training: the same batches and losses as in one process, and a process that dies is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lipsformer import load_checkpoint
from tests.support.nursery import Nursery
from tests.support.tiny_training import TIMINGS, TINY, states, train_tiny

pytestmark = pytest.mark.slow

# Everything that is drawn at random, and a batch of all twelve photos, so that an epoch is a step.
SETTINGS = (
    *TINY,
    "batch_size=12",
    "mixup=0.8",
    "cutmix=1.0",
    "rand_augment=9",
    "random_erasing=0.25",
    "precision=float64",
)
STEPS = 16


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of a training in one process."""
    return metrics(train_alone(photos, tmp_path_factory.mktemp("alone") / "run"))


def train_alone(photos: Path, output: Path, *overrides: str) -> Path:
    """Trains in this process, without torchrun; returns the run."""
    train_tiny(photos, output, *SETTINGS[len(TINY) :], *overrides, epochs=STEPS)
    return output


def words(photos: Path, output: Path, *overrides: str) -> list[str]:
    """The command line of a training."""
    settings = [word for override in (*SETTINGS, *overrides) for word in ("--set", override)]
    return ["train", str(photos), "--output", str(output), "--epochs", str(STEPS), *settings]


def torchrun(
    options: Sequence[str], command: Sequence[str], *, prefix: Sequence[str], **environment: str
) -> subprocess.Popen[str]:
    words = [*prefix, sys.executable, "-m", "torch.distributed.run", *options, "-m", "lipsformer", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    try:
        _, err = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return err


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_close(records: list[dict[str, Any]], others: list[dict[str, Any]], tolerance: float) -> None:
    """Every figure of every epoch agrees, relative to its size."""
    assert len(records) == len(others)
    for record, other in zip(records, others, strict=True):
        assert record.keys() == other.keys()
        for name in record.keys() - {*TIMINGS, "train_loss_curve"}:
            assert record[name] == pytest.approx(other[name], rel=tolerance), (record["epoch"], name)


@pytest.mark.parametrize("overrides", [(), ("grad_accum_steps=3",)])
def test_two_processes_train_as_one(
    photos: Path, alone: list[dict[str, Any]], tmp_path: Path, nursery: Nursery, overrides: tuple[str, ...]
) -> None:
    log = tmp_path / "log.txt"
    nursery.start(words(photos, tmp_path / "run", *overrides), log, processes=2)
    assert nursery.wait(180) == 0, log.read_text()
    err = log.read_text()
    assert "on cpu x 2" in err
    assert err.count(f"epoch {STEPS}/{STEPS}:") == 1  # one process speaks
    assert "Warning" not in err
    assert_close(metrics(tmp_path / "run"), alone, 1e-9)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").metrics["images"] == 3


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """Two hosts that only a cable joins, 10.77.0.1 and 10.77.0.2: the network namespace and the interface of each."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    found = [(f"lipsformer-{os.getpid()}-{number}", f"cable{number}") for number in (1, 2)]
    try:
        for namespace, _ in found:
            ip("netns", "add", namespace)
        ip(
            "link",
            "add",
            found[0][1],
            "netns",
            found[0][0],
            "type",
            "veth",
            "peer",
            "name",
            found[1][1],
            "netns",
            found[1][0],
        )
        for number, (namespace, interface) in enumerate(found, start=1):
            ip("-n", namespace, "address", "add", f"10.77.0.{number}/24", "dev", interface)
            ip("-n", namespace, "link", "set", interface, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    else:
        yield found
    finally:
        for namespace, _ in found:
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def test_two_hosts_train_as_one(
    photos: Path, alone: list[dict[str, Any]], tmp_path: Path, hosts: list[tuple[str, str]]
) -> None:
    output, running = tmp_path / "run", []
    for rank, (namespace, interface) in enumerate(hosts):
        where = [
            "--nnodes=2",
            f"--node-rank={rank}",
            "--master-addr=10.77.0.1",
            "--master-port=29500",
            "--nproc-per-node=1",
        ]
        prefix = ("ip", "netns", "exec", namespace)
        running.append(torchrun(where, words(photos, output), prefix=prefix, GLOO_SOCKET_IFNAME=interface))
    first, second = [finish(process) for process in running]
    assert "on cpu x 2" in first
    assert "epoch" not in second
    assert_close(metrics(output), alone, 1e-9)


def test_other_draws_are_noticed(photos: Path, alone: list[dict[str, Any]], tmp_path: Path) -> None:
    other = metrics(train_alone(photos, tmp_path / "run", "seed=1"))
    with pytest.raises(AssertionError):
        assert_close(other, alone, 1e-9)


def test_a_worker_that_is_killed_is_replaced_and_the_training_finishes(
    photos: Path, alone: list[dict[str, Any]], tmp_path: Path, nursery: Nursery
) -> None:
    output, log = tmp_path / "run", tmp_path / "log.txt"
    agent = nursery.start(words(photos, output, "save_every=1"), log, processes=2, restarts=3)
    deadline = time.monotonic() + 120
    while not [path for path in states(output) if path.name >= "state-000000005"] and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(workers(agent)[-1], signal.SIGKILL)
    assert nursery.wait(180) == 0, log.read_text()
    err = log.read_text()
    assert "another process of the training has died" in err
    assert "resumed at step" in err
    assert_close(metrics(output), alone, 1e-9)


def workers(parent: int) -> list[int]:
    """The training processes that torchrun's agent started."""
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(
    photos: Path, tmp_path: Path, nursery: Nursery
) -> None:
    log = tmp_path / "log.txt"
    nursery.start(words(photos, tmp_path / "run", "batch_size=7"), log, processes=2)
    assert nursery.wait(60) == 2, log.read_text()
    assert "lipsformer: recipe: batch_size=7 cannot be shared evenly by 2 processes; use 8" in log.read_text()
    assert not states(tmp_path / "run")


def test_stopped_by_its_scheduler_it_saves_its_state(
    photos: Path, alone: list[dict[str, Any]], tmp_path: Path, nursery: Nursery
) -> None:
    output, log = tmp_path / "run", tmp_path / "log.txt"
    agent = nursery.start(words(photos, output), log, processes=2, restarts=1)
    while not (output / "metrics.jsonl").exists():
        assert nursery.wait(0.01) is None, log.read_text()
    os.kill(agent, signal.SIGTERM)
    assert nursery.wait(60) == 1
    assert f"{output}: stopped at step" in log.read_text()
    nursery.start(words(photos, output), log, processes=2)
    assert nursery.wait(180) == 0, log.read_text()
    assert "resumed at step" in log.read_text()
    assert_close(metrics(output), alone, 1e-9)
