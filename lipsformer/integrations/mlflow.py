"""Models in MLflow's registry: uploads, and what `mlflow.pyfunc` loads."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipsformer import __version__
from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.checkpoints.hub import WEIGHTS_FILE
from lipsformer.inference.predictor import Predictor, load_predictor
from lipsformer.system.errors import InputError
from lipsformer.system.mlflow import import_mlflow

from .model_card import write_model_card
from .upload import CARD_FILE, CONFIG_FILE, config_text, open_upload

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MLFLOW_PREFIX", "push_to_mlflow"]

MLFLOW_PREFIX = "mlflow:"
NAME = re.compile(r"[^/:.\s%\\\"'][^/:%\\\"']*")  # what MLflow's addresses models:/NAME/VERSION can hold
EXPERIMENT = "lipsformer"
IMAGE, LABEL, SCORE = "image", "label", "score"  # columns
USAGE = """```sh
pip install 'lipsformer[mlflow]'
```

```python
from pathlib import Path

import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model("models:/{name}/latest")
print(model.predict(pd.DataFrame({{"image": [Path("photo.jpg").read_bytes()]}})))
```"""


def push_to_mlflow(model: str | Path, name: str, *, message: str | None = None, license_id: str | None = None) -> str:
    """Register a checkpoint as the next version of the model `mlflow:NAME`, which is created if it is new.

    The version has the checkpoint, its `config.json`, a model card and an `MLmodel` file with a signature: encoded
    images in, labels and scores out. Nothing is pickled.

    Args:
        model: a checkpoint's path, or the name of a trained model.
        name: the model in the registry that MLflow is configured for ($MLFLOW_TRACKING_URI, $MLFLOW_REGISTRY_URI).
        message: description of the version.
        license_id: such as "apache-2.0", kept as a tag.

    Returns:
        The address of the version, `models:/NAME/VERSION`.

    Raises:
        InputError: if the checkpoint cannot be read, MLflow is missing, or it refuses.
    """
    title = name.removeprefix(MLFLOW_PREFIX)
    if not NAME.fullmatch(title):
        raise InputError(
            f"{name}: not a name of MLflow's registry; write mlflow:NAME, without any of /:.%\\ and quotes"
        )
    mlflow = import_mlflow(name)
    path, checkpoint = open_upload(model)
    tags = {"library": f"lipsformer {__version__}"} | ({"license": license_id} if license_id else {})
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its database library
            version = _register(mlflow, path, checkpoint, Path(folder), title, tags, message)
    except (mlflow.MlflowException, OSError) as error:
        raise InputError(f"{name}: MLflow refused ({' '.join(str(error).split())[:300]})") from None
    return f"models:/{title}/{version}"


def _register(
    mlflow: Any,
    path: Path,
    checkpoint: Checkpoint,
    folder: Path,
    title: str,
    tags: Mapping[str, str],
    message: str | None,
) -> str:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    logged = client.create_logged_model(number, name=title, tags=dict(tags), model_type="image-classification")
    shutil.copyfile(path, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(config_text(checkpoint), encoding="utf-8")
    (folder / CARD_FILE).write_text(write_model_card(checkpoint, title, USAGE.format(name=title)), encoding="utf-8")
    _describe(mlflow, logged.model_id).save(str(folder / "MLmodel"))
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    if not client.search_registered_models(f"name = '{title}'"):
        client.create_registered_model(title)
    version = client.create_model_version(
        title, f"models:/{logged.model_id}", tags=dict(tags), description=message, model_id=logged.model_id
    )
    return str(version.version)


def _describe(mlflow: Any, model_id: str) -> Any:
    """The content of the file `MLmodel`: who loads the checkpoint, and the signature."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    inputs = Schema([ColSpec(DataType.binary, IMAGE)])
    outputs = Schema([ColSpec(DataType.string, LABEL), ColSpec(DataType.double, SCORE)])
    description = Model(model_id=model_id, signature=ModelSignature(inputs=inputs, outputs=outputs))
    description.add_flavor("lipsformer", data=WEIGHTS_FILE, version=__version__)
    mlflow.pyfunc.add_to_model(description, loader_module=__name__, data=WEIGHTS_FILE)
    return description


class PythonModel:
    """The model that `mlflow.pyfunc.load_model` gives."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The label and the score of each encoded image in the column `image`; there are no `params`."""
        import pandas as pd

        images: Iterable[bytes] = frame[IMAGE]
        best = [answer[0] for answer in self.predictor.predict(images, top_k=1)]
        return pd.DataFrame({LABEL: [each.label for each in best], SCORE: [each.score for each in best]})


def _load_pyfunc(path: str) -> PythonModel:
    """Called by `mlflow.pyfunc.load_model` with the checkpoint's path."""
    return PythonModel(load_predictor(path))
