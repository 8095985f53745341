"""Bundles in BentoML's model store: what goes in comes out, checked, and can be named wherever a model can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bentoml
import httpx
import pytest
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from lipsformer import InputError, load_predictor
from lipsformer.bundle.manifest import read_manifest
from lipsformer.bundle.store import check_tag, register_bundle
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.export import verify_bundle
from lipsformer.images.samples import SAMPLES
from lipsformer.serving.pipeline.loaded_bundle import LoadedBundle
from lipsformer.serving.settings import Settings
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError
from tests.support.command import Run
from tests.support.http.server import serving
from tests.support.trained import Trained

PHOTO = SAMPLES / "Kaiser.jpg"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside BentoML, while it is imported


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model store of its own, for this process and for those that it starts."""
    home = tmp_path / "bentoml"
    (home / "models").mkdir(parents=True)
    monkeypatch.setenv("BENTOML_HOME", str(home))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    with BentoMLContainer.model_store.patch(ModelStore(home / "models")):
        yield home / "models"


def test_a_stored_bundle_answers_as_the_bundle_does(trained: Trained, store: Path) -> None:
    assert register_bundle(trained.bundle, "fruit:v1") == "fruit:v1"
    path = resolve_model("bentoml:fruit:v1")
    assert path == resolve_model("bentoml:fruit") == store / "fruit" / "v1"
    assert read_manifest(path) == read_manifest(trained.bundle)
    wanted = load_predictor(trained.bundle, "cpu").predict([PHOTO])
    assert load_predictor("bentoml:fruit:v1", "cpu").predict([PHOTO]) == wanted

    assert verify_bundle(Path("bentoml:fruit:v1")).bundle == path
    settings = Settings.from_environment({"LIPSFORMER_BUNDLE": "bentoml:fruit"})
    loaded = LoadedBundle.load(settings, on_fault=lambda _: None)
    assert loaded.manifest.classes == trained.classes

    model = bentoml.models.get("fruit:v1")
    manifest = read_manifest(trained.bundle)
    assert model.info.labels == {
        "model": "lipsformer_swin",
        "classes": "14",
        "precisions": "fp32",
        "checkpoint": manifest.checkpoint_sha256[:16],
    }
    assert model.info.metadata["classes"] == list(trained.classes)
    assert model.info.metadata["preprocessing"]["image_size"] == 32
    yaml.safe_load((path / "model.yaml").read_text())  # plain data: nothing of it is a Python object


@pytest.mark.slow
def test_a_stored_bundle_is_served(trained: Trained, tmp_path: Path) -> None:
    register_bundle(trained.bundle, "fruit:v1")
    with serving("bentoml:fruit", tmp_path / "server.log") as (url, _):
        answer = httpx.post(f"{url}/classify", files={"image": PHOTO.read_bytes()}, timeout=30).json()
        info = httpx.get(f"{url}/info", timeout=30).json()
    (wanted,) = load_predictor(trained.bundle, "cpu").predict([PHOTO])
    assert [found["label"] for found in answer["predictions"]] == [prediction.label for prediction in wanted]
    assert info["classes"] == list(trained.classes)


@pytest.mark.slow
def test_the_export_puts_its_bundle_everywhere_or_nowhere(
    trained: Trained, store: Path, tmp_path: Path, run: Run
) -> None:
    def export(*options: object) -> tuple[int, str]:
        status, _, err = run("export", trained.checkpoint, "--output", tmp_path / "bundle", *options)
        return status, err

    for options, message in (
        (("--triton", trained.data), "exists already"),
        (("--bentoml", "fruit:latest"), "choose another version"),
        (("--triton", tmp_path / "models", "--max-batch", 0), "--max-batch 0"),
    ):
        status, err = export(*options)
        assert (status, message in err) == (2, True), err
        assert not list(store.iterdir())
        assert not (tmp_path / "bundle").exists()
        assert not (tmp_path / "models").exists()
    status, err = export("--triton", tmp_path / "models", "--bentoml", "fruit:v1")
    assert status == 0, err
    assert "lipsformer serve bentoml:fruit:v1" in err
    graphs = [tmp_path / "models/lipsformer-ort-fp32/1/model.onnx", store / "fruit/v1/ort-fp32.onnx"]
    assert {sha256_of(graph) for graph in graphs} == {read_manifest(tmp_path / "bundle").graph().sha256}


def test_each_registration_without_a_version_gets_its_own(trained: Trained) -> None:
    first, second = (register_bundle(trained.bundle, "fruit") for _ in range(2))
    assert first != second
    assert {str(model.tag) for model in bentoml.models.list("fruit")} == {first, second}


def test_what_cannot_be_registered_is_refused(trained: Trained, store: Path) -> None:
    register_bundle(trained.bundle, "fruit:v10")
    with pytest.raises(InputError, match="already in the store"):
        register_bundle(trained.bundle, "fruit:v10")
    check_tag("fruit:v1")  # though BentoML finds v10 by it
    for tag in ("fruit:", "two words", "fruit:latest", "x" * 64, ""):
        with pytest.raises(InputError, match="--bentoml"):
            check_tag(tag)
    (copy := store / "copy").mkdir()
    with pytest.raises(InputError, match="not a bundle"):
        register_bundle(copy, "fruit:v11")


def test_a_damaged_bundle_is_not_registered(trained: Trained, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_badly(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:-1] if source.suffix == ".onnx" else source.read_bytes())

    monkeypatch.setattr("lipsformer.bundle.store.shutil.copyfile", copy_badly)
    with pytest.raises(GateError, match=r"ort-fp32\.onnx: its SHA-256"):
        register_bundle(trained.bundle, "fruit:v1")
    assert not list(store.rglob("*.onnx"))


def test_an_unknown_name_is_told(trained: Trained, run: Run) -> None:
    with pytest.raises(InputError, match=r"bentoml:none: .*`bentoml models list`"):
        resolve_model("bentoml:none")
    register_bundle(trained.bundle, "fruit:v1")
    status, out, err = run("predict", "bentoml:fruit:v2", PHOTO)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert "bentoml:fruit:v2" in err
