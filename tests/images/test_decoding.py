"""Decoder processes: the same pixels and refusals as the command line, and no file that harms their owner."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from PIL import Image, ImageOps

from lipsformer.images.decoding import DecoderPool, decoder, pool
from lipsformer.images.open import ImageError, ImageLimits, open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.errors import InputError
from tests.support.images.files import encode, exif_orientation

MIB = 1024 * 1024
PREPROCESSING = Preprocessing(image_size=96)


@contextlib.asynccontextmanager
async def decoders(
    processes: int = 1, *, seconds: float = 30.0, memory: int = 512 * MIB, limits: ImageLimits | None = None
) -> AsyncIterator[tuple[DecoderPool, list[str]]]:
    """A pool that has started, and the causes of its processes' deaths."""
    deaths: list[str] = []
    made = DecoderPool(
        PREPROCESSING,
        limits or ImageLimits(),
        processes=processes,
        seconds=seconds,
        memory=memory,
        on_exit=deaths.append,
    )
    await made.start()
    try:
        yield made, deaths
    finally:
        await made.close()


def children() -> list[int]:
    """The decoder processes of this one, dead ones that nobody has reaped included."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in found if state(int(pid)) == "Z" or b"process.py" in command(int(pid))]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def state(pid: int) -> str:
    """The letter of a process's state, "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def large() -> bytes:
    """A PNG of 49 megapixels in a few thousand bytes."""
    buffer = io.BytesIO()
    Image.new("1", (7000, 7000)).save(buffer, "PNG")
    return buffer.getvalue()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


async def refused(answer: Awaitable[Any]) -> ImageError:
    with pytest.raises(ImageError) as refusal:
        await answer
    return refusal.value


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine to its end, in the event loop of Python and in that of the server."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run_one(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)

    return run_one


def test_the_pixels_are_those_of_the_command_line(
    run: Callable[[Coroutine[Any, Any, None]], None], samples: list[Path]
) -> None:
    contents = [path.read_bytes() for path in samples]
    contents += [encode(kind) for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")]
    contents.append(encode("JPEG", (40, 20), exif=exif_orientation(6)))

    async def main() -> None:
        async with decoders(2) as (made, deaths):
            answers = await asyncio.gather(*map(made.decode, contents))
            assert len({answer.pixels.tobytes() for answer in answers}) > len(samples)
            for content, (pixels, width, height) in zip(contents, answers, strict=True):
                image = open_image(content)
                assert np.array_equal(pixels, PREPROCESSING.apply(image))
                assert pixels.flags.owndata
                assert pixels.flags.writeable
                upright = ImageOps.exif_transpose(image)
                assert (width, height) == upright.size
            first = (await made.decode(bytearray(contents[0]))).pixels
            kept = first.copy()
            assert not np.array_equal((await made.decode(memoryview(contents[1]))).pixels, kept)
            assert np.array_equal(first, kept)
            assert deaths == []
            assert (made.busy, made.waiting) == (0, 0)
        assert children() == []

    run(main())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, I am no image",
        encode("PNG", (2000, 1001)),
        encode("JPEG")[:900],
        encode("PNG")[:40],
        encode("JPEG")[:2] + b"\xff\xfe\0\2" * 200_001 + encode("JPEG")[2:],
        bytes(2_000_001),
    ],
    ids=["empty", "not_an_image", "too_many_pixels", "cut", "header", "too_complex", "too_many_bytes"],
)
def test_refusals_have_the_words_of_the_command_line(content: bytes) -> None:
    limits = ImageLimits(max_bytes=2_000_000, max_pixels=2_000_000)
    with pytest.raises(ImageError) as expected:
        open_image(content, limits=limits)

    async def main() -> None:
        async with decoders(limits=limits) as (made, deaths):
            error = await refused(made.decode(content))
            assert (error.reason, str(error)) == (expected.value.reason, str(expected.value))
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)
            assert deaths == []

    asyncio.run(main())


def test_what_takes_too_long_is_killed_and_its_process_replaced(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def main() -> None:
        async with decoders(seconds=0.02) as (made, deaths):
            before = children()
            error = await refused(made.decode(large()))
            assert error.reason == "too_slow"
            assert str(error) == "image: not decoded within 0.02 s; scale it down, or save it again"
            assert deaths == ["timeout"]
            made.seconds = 30
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)
            assert len(children()) == 1
            assert children() != before

    run(main())


def test_a_process_that_dies_costs_one_image() -> None:
    async def main() -> None:
        async with decoders() as (made, deaths):
            (child,) = children()
            os.kill(child, signal.SIGSTOP)
            lost = asyncio.create_task(made.decode(encode("JPEG")))
            waiting = asyncio.create_task(made.decode(encode("PNG")))
            await asyncio.sleep(0)
            assert (made.busy, made.waiting) == (1, 1)
            os.kill(child, signal.SIGKILL)
            error = await refused(lost)
            assert error.reason == "too_much_memory"
            assert "crashed" in str(error)
            assert (await waiting).pixels.shape == (96, 96, 3)
            assert deaths == ["crash"]

    asyncio.run(main())


def test_a_process_that_dies_idle_costs_none() -> None:
    async def main() -> None:
        async with decoders() as (made, deaths):
            for _ in range(2):
                (child,) = children()
                os.kill(child, signal.SIGKILL)
                while state(child) != "Z":
                    time.sleep(0.001)
                assert (await made.decode(encode("JPEG"))).pixels.shape == (
                    96,
                    96,
                    3,
                )  # at once: its death is not yet known
            os.kill(children()[0], signal.SIGKILL)
            await until(lambda: len(deaths) == 3)
            assert deaths == ["crash"] * 3
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)

    asyncio.run(main())


def test_an_image_gets_so_much_memory_and_no_more() -> None:
    async def main() -> None:
        async with decoders(memory=32 * MIB) as (made, deaths):
            before = children()
            error = await refused(made.decode(large()))
            assert (error.reason, str(error)) == (
                "too_much_memory",
                "image: needs more memory than there is; scale it down",
            )
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)
            assert (deaths, children()) == ([], before)
        async with decoders() as (made, _):
            assert (await made.decode(large())).pixels.shape == (96, 96, 3)

    asyncio.run(main())


def test_signals_for_the_server_are_not_for_its_decoders() -> None:
    async def main() -> None:
        async with decoders() as (made, deaths):
            before = children()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(before[0], number)
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)
            assert (deaths, children()) == ([], before)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(decoder.BLOCKED) == set()

    asyncio.run(main())


def test_small_images_overtake_a_large_one_but_not_for_ever() -> None:
    # 4 MB of comment, which Pillow skips: 0.2 s of waiting.
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFF - 2)
    small = encode("JPEG")
    big = small[:2] + comment * 64 + small[2:]
    now = time.perf_counter()
    arrivals = [
        ("big", big, now),
        ("second", small, now + 0.01),
        ("first", small, now),
        ("as late as the end of a batch", small, now + 0.1),
        ("after the big one", small, now + 0.5),
        ("a big one that has waited", big, now - 9.0),
    ]
    finished = []

    async def main() -> None:
        async with decoders() as (made, _):

            async def decode(name: str, image: bytes, since: float) -> None:
                await made.decode(image, since=since)
                finished.append(name)

            os.kill(children()[0], signal.SIGSTOP)
            tasks = [asyncio.create_task(made.decode(small))]
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(decode(*arrival)) for arrival in arrivals]
            await asyncio.sleep(0)
            assert made.waiting == len(arrivals)
            os.kill(children()[0], signal.SIGCONT)
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert finished == [
        "a big one that has waited",
        "first",
        "second",
        "as late as the end of a batch",
        "big",
        "after the big one",
    ]


def test_who_gives_up_waiting_costs_nothing() -> None:
    async def main() -> None:
        async with decoders() as (made, deaths):
            (child,) = children()
            os.kill(child, signal.SIGSTOP)
            running, waiting = (asyncio.create_task(made.decode(encode("JPEG"))) for _ in range(2))
            await asyncio.sleep(0)
            for task in (running, waiting):
                task.cancel()
            await asyncio.gather(running, waiting, return_exceptions=True)
            assert (made.busy, made.waiting) == (1, 0)  # what runs is finished, for nobody
            os.kill(child, signal.SIGCONT)
            assert np.array_equal(
                (await made.decode(encode("PNG"))).pixels, PREPROCESSING.apply(open_image(encode("PNG")))
            )  # and not mistaken for the next one's
            assert (deaths, children()) == ([], [child])

    asyncio.run(main())


def test_closing_waits_for_no_image(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        async with decoders(2) as (made, deaths):
            for child in children():
                os.kill(child, signal.SIGSTOP)
            tasks = [asyncio.create_task(made.decode(encode("JPEG"))) for _ in range(4)]
            await asyncio.sleep(0)
            await asyncio.wait_for(made.close(), 10)
            for task in tasks:
                with pytest.raises(RuntimeError, match="the decoders are closed"):
                    await task
            with pytest.raises(RuntimeError, match="the decoders are closed"):
                await made.decode(encode("JPEG"))
            assert (children(), deaths) == ([], [])

    run(main())


def test_a_large_image_leaves_no_memory_behind() -> None:
    small = encode("JPEG")
    content = small[:2] + (b"\xff\xfe\xff\xff" + bytes(0xFFFF - 2)) * 160 + small[2:]

    async def main() -> None:
        async with decoders() as (made, _):
            (area,) = (
                path
                for path in Path("/proc/self/fd").iterdir()
                if "lipsformer-image" in str(path.resolve(strict=False))
            )
            assert (await made.decode(content)).pixels.shape == (96, 96, 3)
            assert len(content) > 10 * MIB
            assert area.stat().st_blocks * 512 < 2 * MIB
            assert np.array_equal((await made.decode(content)).pixels, (await made.decode(small)).pixels)

    asyncio.run(main())


def test_a_process_is_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def main() -> None:
        async with decoders() as (_, _):
            (child,) = children()
            folder = Path(f"/proc/{child}")
            status = dict(line.split(":\t") for line in (folder / "status").read_text().splitlines())
            assert status["NoNewPrivs"] == "1"
            assert int(status["SigBlk"], 16) & 1 << signal.SIGTERM - 1
            assert (folder / "oom_score_adj").read_text() == "1000\n"
            assert b"secret" not in (folder / "environ").read_bytes()
            assert resource.prlimit(child, resource.RLIMIT_CORE) == (0, 0)
            files = [str(path.readlink()) for path in (folder / "fd").iterdir()]
            # The socket and no other, stdout, stderr twice, the area twice.
            assert (len(files), sum(file.startswith("socket:") for file in files)) == (6, 1)
            assert sum("lipsformer-image" in file for file in files) == 2

    asyncio.run(main())


def test_the_confinement_holds(tmp_path: Path) -> None:
    script = """
        import contextlib, pathlib, sys
        from lipsformer.images.decoding import process

        def attempt(name, action):
            try:
                action()
            except (OSError, MemoryError, ValueError) as error:
                print(name, type(error).__name__)
            else:
                print(name, "done")

        def write():
            with open(sys.argv[1], "wb", buffering=0) as file:
                file.write(b"x")

        def open_many():
            with contextlib.ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(open("/dev/null"))

        def unlimit():
            process.resource.setrlimit(process.resource.RLIMIT_AS, (2**40, 2**40))

        for step in ("free", "confined"):
            attempt(step + " write", write)
            attempt(step + " open", open_many)
            attempt(step + " memory", lambda: bytearray(200 * 2**20))
            attempt(step + " some memory", lambda: bytearray(50 * 2**20))
            if step == "free":
                process._confine(100 * 2**20)
        print(pathlib.Path(sys.argv[1]).read_bytes())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "file"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "free write done",
        "free open done",
        "free memory done",
        "free some memory done",
        "confined write OSError",
        "confined open OSError",
        "confined memory MemoryError",
        "confined some memory done",
        "b''",  # opened for writing, and not a byte written
    ]


HOSTILE = """
    import os, json, socket, sys, time
    area = json.loads(sys.argv[1])["area"]
    channel = socket.socket(fileno=0)
    channel.send(b"ready")
    channel.recv(32)
    {}
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "answer",
    [
        "channel.send(b'rubbish')",
        "channel.send(b'ready')",
        "channel.send(b'')",
        "channel.send(b'done' * 2000)",
        "channel.send(b'done')",
        "channel.send(b'done 5')",
        "channel.send(b'done 0 5')",
        "channel.send(b'done -5 -5')",
        "channel.send(b'done 5 5 5')",
        "channel.send(b'done 99999 99999')",
        "channel.send('done \u0665 5'.encode())",
        "channel.send(b'\\xff\\xfe damaged')",
        "os.ftruncate(area, 0); channel.send(b'done 5 5')",
        "channel.close(); os.close(0)",
        "os.abort()",
    ],
)
def test_a_process_is_not_trusted(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = decoder.PROGRAM
    program = tmp_path / "process.py"
    program.write_text(textwrap.dedent(HOSTILE).format(answer))
    monkeypatch.setattr(decoder, "PROGRAM", program)

    async def main() -> None:
        async with decoders() as (made, deaths):
            monkeypatch.setattr(decoder, "PROGRAM", honest)
            assert (await refused(made.decode(encode("JPEG")))).reason == "too_much_memory"
            assert deaths == ["crash"]
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)

    asyncio.run(main())


def test_unasked_words_end_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = decoder.PROGRAM
    program = tmp_path / "process.py"
    program.write_text(textwrap.dedent(HOSTILE).replace("channel.recv(32)", "channel.send(b'done')").format(""))
    monkeypatch.setattr(decoder, "PROGRAM", program)

    async def main() -> None:
        async with decoders() as (made, deaths):
            monkeypatch.setattr(decoder, "PROGRAM", honest)
            await until(lambda: deaths == ["crash"])
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)

    asyncio.run(main())


def test_processes_that_do_not_start_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = decoder.PROGRAM
    broken = tmp_path / "process.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(pool, "FIRST_DELAY", 0.001)

    async def main() -> None:
        async with decoders() as (made, _):
            monkeypatch.setattr(decoder, "PROGRAM", broken)
            os.kill(children()[0], signal.SIGSTOP)
            running = asyncio.create_task(made.decode(encode("JPEG")))
            waiting = asyncio.create_task(made.decode(encode("JPEG")))
            await asyncio.sleep(0)
            os.kill(children()[0], signal.SIGKILL)
            assert (await refused(running)).reason == "too_much_memory"
            with pytest.raises(RuntimeError, match="a decoder process cannot be started: it ended while it started"):
                await waiting
            with pytest.raises(RuntimeError, match="no decoder process can be started"):
                await made.decode(encode("JPEG"))
            monkeypatch.setattr(decoder, "PROGRAM", honest)
            await until(lambda: made._failures == 0)  # it goes on trying
            assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)
        monkeypatch.setattr(decoder, "PROGRAM", broken)
        with pytest.raises(RuntimeError, match="a decoder process cannot be started"):
            async with decoders(2):
                pass
        monkeypatch.setattr(decoder.sys, "executable", str(tmp_path / "no-python"))
        with pytest.raises(RuntimeError, match="No such file"):
            async with decoders(2):
                pass
        assert children() == []

    asyncio.run(main())


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")

    async def main() -> None:
        with pytest.raises(InputError, match="need Linux"):
            async with decoders():
                pass

    asyncio.run(main())


def test_decoders_die_with_their_server() -> None:
    script = """
        import asyncio, os, signal, sys
        sys.path.insert(0, sys.argv[1])
        from tests.images.test_decoding import children, decoders

        async def main():
            async with decoders(2) as _:
                os.kill(children()[0], signal.SIGSTOP)  # one hangs, one is idle
                print(*children(), flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        assert len(pids) == 2
        assert all(state(pid) not in ("", "Z") for pid in pids)
        server.kill()
    deadline = time.monotonic() + 20
    while any(state(pid) not in ("", "Z") for pid in pids):
        assert time.monotonic() < deadline, "they outlived it"
        time.sleep(0.01)


@pytest.mark.slow
def test_fifty_deaths_leave_nothing_behind() -> None:
    async def main() -> None:
        async with decoders(5) as (made, deaths):
            files = len(list(Path("/proc/self/fd").iterdir()))
            for killed in range(5, 55, 5):
                for child in children():
                    os.kill(child, signal.SIGKILL)
                await until(lambda: len(deaths) == killed and len(made._idle) == len(children()) == 5)  # noqa: B023
                assert (await made.decode(encode("JPEG"))).pixels.shape == (96, 96, 3)
            await until(lambda: not any(state(child) == "Z" for child in children()))
            assert (len(deaths), len(children())) == (50, 5)
            assert len(list(Path("/proc/self/fd").iterdir())) == files
        assert children() == []

    asyncio.run(main())
