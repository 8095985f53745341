"""The way of a block of images on one machine: read in threads, decoded in processes, classified in one thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lipsformer.images.decoding import Decoded, DecoderPool
from lipsformer.images.open import ImageError, ImageLimits
from lipsformer.inference.predictor import Predictor
from lipsformer.system.errors import LipsFormerError
from lipsformer.system.hardware import cores

from .rows import Refusal, Row, text
from .settings import BulkOptions
from .sources import ListedImage

__all__ = ["IN_FLIGHT", "Block", "Pipeline", "Rows"]

IN_FLIGHT = 5  # blocks: one is classified, the next is ready, the others are read and decoded meanwhile
DECODE_SECONDS = 60.0  # no machine is so busy that a photo takes longer
DECODE_MEMORY = 1024**3

Block = Sequence[tuple[int, ListedImage]]  # images by position
Rows = Sequence[tuple[int, Row]]
Opened = Sequence[Decoded | Refusal]


class Pipeline:
    """Computes the rows of blocks with a predictor, up to `window` blocks at the same time.

    The readable images of a block are one batch: its rows do not depend on other blocks. Use it in one event loop.

    Args:
        predictor: the loaded model.
        options: `top_k` and `features` of the rows.
        processes: that decode, and half as many as threads that read; by default the cores.
    """

    window = IN_FLIGHT

    def __init__(self, predictor: Predictor, options: BulkOptions, processes: int | None = None) -> None:
        self.predictor, self.options = predictor, options
        processes = processes or cores()
        self.decoders = DecoderPool(
            predictor.preprocessing,
            ImageLimits(),
            processes=processes,
            seconds=DECODE_SECONDS,
            memory=DECODE_MEMORY,
        )
        self.slots = asyncio.Semaphore(2 * processes)  # encoded images in memory
        self.readers = ThreadPoolExecutor(2 * processes, thread_name_prefix="read")
        self.inference = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def start(self) -> None:
        """Starts the decoders.

        Raises:
            InputError: if this is not Linux.
            LipsFormerError: if they do not start.
        """
        with _decoder_errors():
            await self.decoders.start()

    async def close(self) -> None:
        """Ends everything that runs."""
        await self.decoders.close()
        self.readers.shutdown(cancel_futures=True)
        self.inference.shutdown(cancel_futures=True)

    async def compute(self, block: Block) -> Rows:
        """The rows of a block. Once it is opened, cancelling no longer stops it: its rows are nearly there.

        Raises:
            LipsFormerError: if no decoder can be started any more.
        """
        opened = await asyncio.gather(*(self._open(image) for _, image in block))
        pixels = [image.pixels for image in opened if isinstance(image, Decoded)]
        if not pixels:
            return self._rows(block, opened)
        running = asyncio.get_running_loop().run_in_executor(
            self.inference, lambda: self._rows(block, opened, np.stack(pixels))
        )
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if running.cancelled():
                    raise

    async def _open(self, image: ListedImage) -> Decoded | Refusal:
        async with self.slots:
            content = await asyncio.get_running_loop().run_in_executor(self.readers, image.read)
            if isinstance(content, Refusal):
                return content
            try:
                with _decoder_errors():
                    return await self.decoders.decode(content)
            except ImageError as error:
                return Refusal.of(error)

    def _rows(self, block: Block, opened: Opened, pixels: np.ndarray | None = None) -> Rows:
        each = iter(()) if pixels is None else self.predictor.runtime.infer(pixels).each()
        rows = []
        for (position, image), found in zip(block, opened, strict=True):
            name = text(image.name)
            if isinstance(found, Refusal):
                rows.append((position, Row.refused(name, found)))
                continue
            logits, features = next(each)
            answer = self.predictor.classify(logits, features, self.options.top_k)
            kept = features if self.options.features else None
            rows.append((position, Row.answered(name, answer, (found.width, found.height), kept)))
        return rows


@contextlib.contextmanager
def _decoder_errors() -> Iterator[None]:
    """Turns the failure of all decoders, which is that of no image, into one line."""
    try:
        yield
    except RuntimeError as error:
        raise LipsFormerError(f"{error}; run the same command again to resume") from None
