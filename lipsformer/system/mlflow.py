"""The optional library MLflow."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from .extras import require

__all__ = ["import_mlflow"]

# A server that does not answer would hold up a training: MLflow's defaults are 120 s and 7 tries. And nobody asked for
# reports on usage to MLflow's makers.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def import_mlflow(what: str) -> Any:
    """The module, which logs warnings only. `what` needs it, for the message.

    Raises:
        MissingPackageError: if it, or the SQLAlchemy of its local store, is not installed.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    require("mlflow", what=what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow
