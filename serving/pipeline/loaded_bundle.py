"""A bundle, verified and warm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Self

from lipsformer.bundle.manifest import Manifest, read_manifest
from lipsformer.bundle.store import resolve_bundle
from lipsformer.inference.heat_map import GraphExplainer
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import RuntimeOptions
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import GateError, InputError

from .fault_isolation import FaultError, IsolatingRuntime, RuntimeFault

__all__ = ["LoadedBundle"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedBundle:
    """A bundle with verified hashes, its warm runtime, and the largest batch that is worth running.

    `explainer` draws its heat maps, on one thread, if they were asked for and it was exported with them.
    """

    bundle: Path
    manifest: Manifest
    runtime: IsolatingRuntime
    max_batch: int
    explainer: GraphExplainer | None

    @classmethod
    def load(cls, settings: Settings, on_fault: Callable[[RuntimeFault], None], *, explain: bool = True) -> Self:
        """Verifies, loads and warms up the bundle that `settings` name; `on_fault` gets every fault of its runtime.

        Without `explain`, its heat maps stay closed.

        Raises:
            InputError: if the bundle or a setting cannot be used.
            GateError: if a file of the bundle does not match its manifest, or the model gives no finite outputs.
        """
        bundle = resolve_bundle(settings.bundle).resolve()  # a link may point elsewhere by the time a file is opened
        manifest = read_manifest(bundle)
        if settings.max_batch is not None and settings.max_batch > manifest.max_batch:
            raise InputError(
                f"LIPSFORMER_MAX_BATCH={settings.max_batch}: the export verified batches up to {manifest.max_batch}; "
                "lower it, or export again with a larger --max-batch"
            )

        options = RuntimeOptions(device=settings.device, precision=settings.precision, threads=settings.threads)
        runtime = IsolatingRuntime(lambda: Predictor.from_bundle(bundle, options, manifest), on_fault=on_fault)
        try:
            max_batch = runtime.warm_up(settings.max_batch or manifest.max_batch)
        except FaultError as fault:
            raise GateError(f"{bundle}: {fault}; export the bundle again") from None
        heat_maps = runtime.predictor.heat_maps if explain else None
        explainer = None if heat_maps is None else GraphExplainer(heat_maps, threads=1)
        return cls(bundle=bundle, manifest=manifest, runtime=runtime, max_batch=max_batch, explainer=explainer)
