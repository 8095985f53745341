"""The Open Inference Protocol, version 2, over HTTP, with Triton's extensions for binary tensors and classification.

https://github.com/kserve/open-inference-protocol and, for the extensions,
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations
