"""The optional library MLflow."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from .errors import InputError

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
        InputError: if it is not installed.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow
            import sqlalchemy  # noqa: F401  # of the local store; without it MLflow fails later
    except ImportError as error:
        raise InputError(f"{what}: MLflow cannot be loaded ({error}); pip install 'lipsformer[mlflow]'") from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow
