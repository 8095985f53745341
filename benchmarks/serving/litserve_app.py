"""LitServe with the null model: the photo is decoded and resized by Pillow, and the graph run by ONNX Runtime.

    python benchmarks/serving/litserve_app.py '{"port": 3000, "graph": "null/ort-fp32.onnx", ...}'

It runs in an environment of its own, without LipsFormer; `null.py` starts it. Bodies are taken as FastAPI takes them
best: as bytes, from the raw body or from the form's file, without a file on disk.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Body, File
from PIL import Image

SIZE, SHORTER = 224, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to serve; `form` is whether photos come in forms, `log_level` "info" (LitServe's own) has an access log."""

    port: int
    graph: str
    form: bool
    batch: int
    batch_timeout: float
    workers: int
    api_servers: int
    fast_queue: bool
    log_level: str


class NullApi(litserve.LitAPI):  # type: ignore[misc]
    """Photo to label."""

    def __init__(self, graph: str, **options: Any) -> None:
        super().__init__(**options)
        self.graph = graph

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.graph, options, ["CPUExecutionProvider"])

    def decode_request(self, request: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(request)).convert("RGB")
        side = min(image.size) * SIZE / SHORTER
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        single = pixels.ndim == 3
        logits = self.session.run(None, {"pixels": pixels[None] if single else pixels})[0]
        return logits[0] if single else logits

    def encode_response(self, logits: np.ndarray) -> dict[str, Any]:
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        best = np.argsort(-scores)[:5]
        return {"predictions": [{"label": f"class {i}", "index": int(i), "score": float(scores[i])} for i in best]}


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    # FastAPI reads the parameter's annotation to know where the bytes come from.
    source = Annotated[bytes, File(alias="image")] if settings.form else Annotated[bytes, Body()]
    NullApi.decode_request.__annotations__["request"] = source
    api = NullApi(
        settings.graph, max_batch_size=settings.batch, batch_timeout=settings.batch_timeout, api_path="/classify"
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=settings.workers, fast_queue=settings.fast_queue
    )
    server.run(
        host="127.0.0.1",
        port=settings.port,
        num_api_servers=settings.api_servers,
        log_level=settings.log_level,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
