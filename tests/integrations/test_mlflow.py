"""Models in MLflow's registry, read back and loaded by MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lipsformer import load_predictor
from tests.support.command import Run
from tests.support.trained import Trained

NAME = "fruit classifier"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own, about its database library
def test_a_version_is_registered_and_loaded(store: Path, trained: Trained, run: Run, samples: list[Path]) -> None:
    assert run("push", trained.checkpoint, f"mlflow:{NAME}") == (0, f"models:/{NAME}/1\n", "")
    words = ("--license", "apache-2.0", "--message", "the second")
    assert run("push", trained.checkpoint, f"mlflow:{NAME}", *words) == (0, f"models:/{NAME}/2\n", "")
    import mlflow

    client: Any = mlflow.MlflowClient()
    version = client.get_model_version(NAME, "2")
    assert (version.description, version.tags["license"], version.status) == ("the second", "apache-2.0", "READY")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/2"))
    files = {path.name for path in folder.iterdir()} - {"registered_model_meta"}  # which the download adds
    assert files == {"MLmodel", "README.md", "config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == trained.checkpoint.read_bytes()
    assert f'load_model("models:/{NAME}/latest")' in (folder / "README.md").read_text()
    pandas: Any = pytest.importorskip("pandas")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/latest")
    assert model.metadata.signature.inputs.input_names() == ["image"]
    answers = model.predict(pandas.DataFrame({"image": [photo.read_bytes() for photo in samples[:3]]}))
    wanted = [answer[0] for answer in load_predictor(trained.checkpoint).predict(samples[:3], top_k=1)]
    assert list(answers.itertuples(index=False, name=None)) == [(best.label, best.score) for best in wanted]


def test_what_it_refuses(store: Path, trained: Trained, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, options, expected in (
        ("mlflow:", (), "write mlflow:NAME"),
        ("mlflow:a/b", (), "write mlflow:NAME"),
        ("mlflow:fruit", ("--private",), "--replace-card are for the Hub"),
        ("mlflow:fruit", ("--replace-card",), "--replace-card are for the Hub"),
    ):
        status, out, err = run("push", trained.checkpoint, target, *options)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert expected in err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/none/mlflow.db")
    (store / "none").touch()
    status, out, err = run("push", trained.checkpoint, "mlflow:fruit")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "MLflow refused" in err
