"""`lipsformer verify`: repeats the parity checks of a bundle on the machine that will serve it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lipsformer.bundle.manifest import OPENVINO, BundleFile, Manifest, read_manifest
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.export.parity.check import FileParity, check_parity
from lipsformer.export.parity.gate_images import ImageSource
from lipsformer.export.parity.reference import REFERENCE_NAME, Reference
from lipsformer.export.parity.report import ParityReport
from lipsformer.export.parity.thresholds import THRESHOLDS, Limits
from lipsformer.export.whole_image.gate import WholeImageParity, check_whole_image
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.runtimes import CUDA, OnnxRuntime, Runtime, TorchRuntime, import_onnxruntime
from lipsformer.inference.runtimes.openvino import OpenVinoRuntime
from lipsformer.system.atomic import sha256_of
from lipsformer.system.console import printable
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.extras import require
from lipsformer.system.hardware import check_device, installed_versions
from lipsformer.system.strict_json import finite

from .settings import PACKAGES

__all__ = ["Verification", "verify_bundle"]

IMAGES = 256  # of --data, or of the sample photos, if a checkpoint is given


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Verification:
    """The result: `parity` of the files that can run, and `misfits` as (file, why it cannot run here).

    `whole_images` are the whole-image graphs by name, compared with the graph behind each.

    `versions` holds the version at export and the version here, for each package where they differ.
    """

    bundle: Path
    hashed: int
    versions: Mapping[str, tuple[str | None, str | None]]
    parity: ParityReport
    misfits: tuple[tuple[str, str], ...]
    whole_images: Mapping[str, WholeImageParity]

    @property
    def failures(self) -> list[str]:
        """The failures, one sentence per file; a file that cannot run here is one."""
        return [
            *self.parity.failures,
            *(f"{name}: {found.failure}" for name, found in self.whole_images.items() if found.failure is not None),
            *(f"{name} cannot run here: {reason}" for name, reason in self.misfits),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        return {
            "bundle": str(self.bundle),
            "passed": not self.failures,
            "failures": self.failures,
            "hashes_checked": self.hashed,
            "versions": {
                name: {"exported": exported, "here": here} for name, (exported, here) in self.versions.items()
            },
            "misfits": dict(self.misfits),
            "whole_images": {name: finite(found.summary()) for name, found in self.whole_images.items()},
            "parity": self.parity.to_dict(),
        }

    def to_text(self) -> str:
        """The result in Markdown."""
        lines = [self.parity.to_text(), "", f"The hashes of {self.hashed} files match the manifest."]
        lines += [
            f"{name}: exported with {exported or 'none'}, here is {here or 'none'}"
            for name, (exported, here) in self.versions.items()
        ]
        lines += [
            f"{name}: {found.failure or f'the answers of the graph behind it, for images of {found.images} sizes'}"
            for name, found in self.whole_images.items()
        ]
        lines += [f"{name} cannot run here: {printable(reason)}" for name, reason in self.misfits]
        return "\n".join([*lines, f"{self.bundle}: {'FAILED' if self.failures else 'verified'}"])


def verify_bundle(
    bundle: Path, *, checkpoint: Path | None = None, data: Path | None = None, device: str = "auto"
) -> Verification:
    """Check the hashes of a bundle, and the parity of each graph and engine in every runtime that works here.

    Args:
        bundle: the folder, or `bentoml:NAME:VERSION` in BentoML's model store.
        checkpoint: the checkpoint of the bundle, or its name, to compute its logits again; by default the bundle's copy
            is used.
        data: photos to compare on, with `checkpoint`; by default the sample photos of the package.
        device: "auto" for everything that works here; "cpu" for the graphs on the CPU; "cuda" for engines and CUDA.

    Raises:
        InputError: if the bundle, the checkpoint or the data cannot be used, or `device` is not available.
        GateError: if a file of the bundle is missing or changed, or was not exported from `checkpoint`.
    """
    check_device(device)
    if data is not None and checkpoint is None:
        raise InputError("--data needs --checkpoint: the bundle holds the logits of its photos only")
    import_onnxruntime()
    bundle = resolve_model(bundle)
    manifest = read_manifest(bundle)
    reference = (
        Reference.load(bundle / REFERENCE_NAME) if checkpoint is None else _computed(bundle, manifest, checkpoint, data)
    )
    checked: list[FileParity] = []
    misfits: list[tuple[str, str]] = []
    for file, runtime in _runtimes(bundle, manifest, device):
        if isinstance(runtime, InputError):
            misfits.append((file.name, str(runtime).removeprefix(f"{bundle / file.name}: ")))
            continue
        checked.append(
            check_parity(
                runtime,
                reference,
                file=file.name,
                target=file.target or "",
                precision=file.precision or "",
                max_batch=manifest.max_batch,
                limits=_limits(file, len(reference.photos.logits)),
            )
        )
    here = installed_versions(PACKAGES)
    return Verification(
        bundle=bundle,
        hashed=len({file.name for file in manifest.files}),
        versions={
            name: (manifest.versions.get(name), here.get(name))
            for name in sorted({*manifest.versions, *here})
            if manifest.versions.get(name) != here.get(name)
        },
        parity=ParityReport(reference=reference, files=checked),
        misfits=tuple(misfits),
        whole_images={} if device == "cuda" else dict(_whole_images(bundle, manifest)),
    )


def _computed(bundle: Path, manifest: Manifest, checkpoint: Path, data: Path | None) -> Reference:
    """The checkpoint's logits, computed here."""
    require("train", "torch", what="--checkpoint")
    from lipsformer.checkpoints.checkpoint import load_checkpoint

    checkpoint = resolve_model(checkpoint)
    loaded = load_checkpoint(checkpoint)
    if sha256_of(checkpoint) != manifest.checkpoint_sha256:
        raise GateError(f"{checkpoint}: not the checkpoint that {bundle} was made from: its SHA-256 differs")
    source = ImageSource.find(data or SAMPLES, loaded.classes)
    if data is not None:
        source.images.left_out.report(data)
    return Reference.of(TorchRuntime(loaded), source.gate_images(IMAGES, loaded.preprocessing))


def _runtimes(bundle: Path, manifest: Manifest, device: str) -> Iterator[tuple[BundleFile, Runtime | InputError]]:
    """Each file with each runtime that works here, or with the reason why none does."""
    cuda = device == "cuda" or (device == "auto" and CUDA in import_onnxruntime().get_available_providers())
    for file in manifest.files:
        path = bundle / file.name
        if file.target == OPENVINO:
            if device != "cuda":
                yield file, _opened(functools.partial(OpenVinoRuntime, path))
        elif file.kind == "onnx":
            if device != "cuda":
                yield file, _opened(functools.partial(OnnxRuntime, path, "cpu"))
            if cuda:
                runtime = OnnxRuntime(path, device)
                if runtime.provider == CUDA:
                    yield file, runtime
        elif file.kind == "engine" and device != "cpu":
            from lipsformer.inference.runtimes.tensorrt import TensorRtRuntime

            yield file, _opened(functools.partial(TensorRtRuntime, path, file))


def _whole_images(bundle: Path, manifest: Manifest) -> Iterator[tuple[str, WholeImageParity]]:
    for file in manifest.files:
        if file.kind == "whole-image":
            graph = bundle / manifest.graph(file.precision).name
            limit = (file.parity or {}).get("limit", THRESHOLDS[file.precision or ""]["order"])
            yield file.name, check_whole_image(bundle / file.name, graph, manifest.preprocessing, limit)


def _opened(runtime: Callable[[], Runtime]) -> Runtime | InputError:
    try:
        return runtime()
    except InputError as misfit:
        return misfit


def _limits(file: BundleFile, photos: int) -> Limits:
    """The limits of the export; if they let the top class of some of many photos differ, one of these few may."""
    limits = dict((file.parity or {}).get("thresholds") or THRESHOLDS[file.precision or ""])
    agreement = limits.get("top1_agreement", 0.0)
    if agreement < 1.0:
        limits["top1_agreement"] = min(agreement, 1 - 1 / photos)
    return limits
