"""Packs a bundle together with this service as a Bento, from which `bentoml containerize` makes an image."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lipsformer
from lipsformer.bundle.manifest import MANIFEST_NAME, Manifest, read_manifest
from lipsformer.system.errors import InputError

__all__ = ["GPU_RUNTIME", "NAME", "REQUIREMENTS", "RUNTIME", "Bento", "build_options", "pack"]

# Not "lipsformer": `bentoml serve lipsformer:TAG` would take an installed package of that name for the Bento's.
NAME = "lipsformer-classifier"
PYTHON = "3.11"

# What serving needs, and no more: these lines stand in pyproject.toml too, and in bentofile.yaml.
REQUIREMENTS = (
    "bentoml>=1.4.39",
    "httptools>=0.6",
    "numpy>=2.0",
    "opentelemetry-exporter-otlp-proto-http>=1.45",
    "pillow>=12.0",
    "python-multipart>=0.0.20",
    "starlette>=0.47",
    "uvloop>=0.21; sys_platform != 'win32'",
)
RUNTIME = "onnxruntime>=1.24"
GPU_RUNTIME = "onnxruntime-gpu[cuda,cudnn]>=1.24"  # with the wheels of CUDA: the image needs no CUDA of its own
ENGINES_NEED = "torch>=2.13"  # engines run in its memory

# The parts of the core that serving stands on; the rest of it is for training and the command line.
CORE = ("__init__.py", "bundle/*.py", "images/*.py", "inference/**/*.py", "system/*.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bento:
    """A Bento in BentoML's store: NAME:VERSION, its folder, and its size in bytes."""

    tag: str
    path: Path
    size: int


def pack(
    bundle: Path, *, name: str = NAME, version: str | None = None, gpu: bool = False, precision: str | None = None
) -> Bento:
    """Packs `bundle` with this service into BentoML's store, where the Bento appears whole or not at all.

    Args:
        bundle: folder; its files are checked, and so are their copies.
        name: of the Bento.
        version: of the Bento; by default one that BentoML makes up.
        gpu: whether its image is for NVIDIA GPUs: it then starts on nothing else.
        precision: which of the bundle's its image runs; by default the first.

    Raises:
        InputError: if an argument or the bundle cannot be used, the store has this version, or BentoML cannot build.
        GateError: if a file of the bundle is not what its manifest promises.
    """
    manifest = read_manifest(bundle)
    manifest.graph(precision)
    home = _home()
    _check_tag(home, name, version)
    with tempfile.TemporaryDirectory(prefix="lipsformer-", dir=home / "tmp") as room:
        tree = Path(room, "tree")
        _stage(bundle, manifest, tree)
        options = build_options(manifest, name=name, gpu=gpu, precision=precision)
        (tree / "bentofile.yaml").write_text(json.dumps(options), encoding="utf-8")  # YAML as well
        built = _build(tree, Path(room, "home"), version)
        place = home / "bentos" / built.parent.name / built.name
        place.parent.mkdir(exist_ok=True)
        try:
            built.rename(place)
        except OSError:
            raise _taken(f"{name}:{version}") from None
    latest = place.parent / "latest"
    draft = latest.with_name(f".latest.{os.getpid()}.tmp")
    draft.write_text(place.name, encoding="utf-8")
    draft.replace(latest)
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return Bento(tag=f"{place.parent.name}:{place.name}", path=place, size=size)


def build_options(
    manifest: Manifest, *, name: str = NAME, gpu: bool = False, precision: str | None = None
) -> dict[str, Any]:
    """What BentoML is told to build, as the content of a bentofile.yaml."""
    packages = [*REQUIREMENTS, *(_gpu_packages(manifest) if gpu else (RUNTIME,))]
    environment = {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": "/tmp/bentoml",  # noqa: S108 - in the image: all else may be read-only there
        "LIPSFORMER_DEVICE": "cuda" if gpu else "cpu",  # and never the other one without a word
        **({} if precision is None else {"LIPSFORMER_PRECISION": precision}),
    }
    return {
        "service": "lipsformer.serving.bento.service:Classifier",
        "name": name,
        "description": f"{manifest.model['architecture']} for {len(manifest.classes)} classes: POST /classify\n",
        "labels": {"project": "lipsformer", "checkpoint": manifest.checkpoint_sha256[:16]},
        "include": [*(f"lipsformer/{pattern}" for pattern in CORE), "serving/", "bundle/"],
        "python": {"packages": sorted(packages)},
        "docker": {"python_version": PYTHON},
        "envs": [{"name": key, "value": value} for key, value in environment.items()],
    }


def _gpu_packages(manifest: Manifest) -> list[str]:
    """ONNX Runtime for CUDA; where the bundle has engines that were proved, TensorRT of just their version, and torch.

    Of several versions none can be installed beside another: the engines of the last one run.
    """
    proved = [file for file in manifest.files if file.kind == "engine" and (file.parity or {}).get("passed")]
    libraries = {file.target: f"{file.target}=={(file.built or {}).get('version')}" for file in proved}
    return [GPU_RUNTIME, *libraries.values(), *([ENGINES_NEED] if proved else [])]


def _home() -> Path:
    """BentoML's folder."""
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # BentoML would call its makers
    from bentoml._internal.configuration.containers import BentoMLContainer

    return Path(BentoMLContainer.bentoml_home.get())


def _check_tag(home: Path, name: str, version: str | None) -> None:
    import bentoml

    shown = name if version is None else f"{name}:{version}"
    try:
        bentoml.Tag(name, version)
    except ValueError as error:
        raise InputError(f"{shown}: BentoML takes no such name ({' '.join(str(error).split())})") from None
    if shown != shown.lower() or version == "latest":
        raise InputError(f"{shown}: small letters are needed, and a version other than 'latest'")
    if name == lipsformer.__name__:
        raise InputError(
            f"--name {name}: `bentoml serve` would take the installed package of that name for it; choose another"
        )
    if version is not None and (home / "bentos" / name / version).exists():
        raise _taken(shown)


def _taken(tag: str) -> InputError:
    return InputError(f"{tag}: BentoML's store has it already; choose another --version, or `bentoml delete {tag}`")


def _stage(bundle: Path, manifest: Manifest, tree: Path) -> None:
    """Lays out what a Bento carries as in a checkout, wherever the installed package has it."""
    core = Path(lipsformer.__file__).parent
    for file in (file for pattern in CORE for file in core.glob(pattern)):
        copy = tree / "lipsformer" / file.relative_to(core)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copytree(core / "serving", tree / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "bundle").mkdir()
    for name in (MANIFEST_NAME, *(file.name for file in manifest.files)):
        shutil.copyfile(bundle / name, tree / "bundle" / name)
    read_manifest(tree / "bundle")  # the copies have the hashes too


def _build(tree: Path, home: Path, version: str | None) -> Path:
    """The Bento that BentoML builds of `tree` into a store of its own, in a process that sees none of our settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIPSFORMER_")}
    command = [sys.executable, "-m", "bentoml", "build", *([] if version is None else ["--version", version])]
    done = subprocess.run(  # noqa: S603 - no shell
        command, cwd=tree, env=environment | {"BENTOML_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        told = next((line for line in said if line.startswith("Error: ")), said[-1])
        hint = "BentoML asks PyPI for the packages' versions" if "lock" in told else "see `lipsformer doctor`"
        raise InputError(f"BentoML could not build ({told.removeprefix('Error: ')}); {hint}")
    (found,) = (home / "bentos").glob("*/*/bento.yaml")
    return found.parent
