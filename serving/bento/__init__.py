"""Everything that touches BentoML, the process manager (circus) and the web server (uvicorn) that it starts.

The rest of serving/ is a plain ASGI application. Read this page at each upgrade of BentoML: the tables list every
undocumented name that this folder relies on, and tests/serving/test_bento_internals.py names the ones that have moved.
"""

from __future__ import annotations

__all__ = ["MENTIONED", "PRIVATE_NAMES"]

# Module -> names in it, with attributes after a dot. An instance's attributes are those that its class assigns.
PRIVATE_NAMES = {
    # service.py: answers in place of BentoML's own application, and asks BentoML about health only
    "_bentoml_sdk": ("Service.to_asgi",),
    # monitoring.py, package.py
    "bentoml._internal.configuration.containers": (
        "BentoMLContainer.bentoml_home.get",
        "BentoMLContainer.config.monitoring.options.log_path.set",
    ),
    "bentoml._internal.context": ("trace_context.request_id",),
    # signals.py
    "circus.sighandler": ("SysHandler.quit", "SysHandler.handle_hup", "SysHandler.controller"),
    "circus.controller": ("Controller.loop", "Controller.arbiter"),
    "circus.arbiter": ("Arbiter.watchers", "Arbiter.sockets"),
    "circus.watcher": ("Watcher.processes",),
    "circus.process": ("Process.send_signal",),
    # http_protocol.py
    "uvicorn.config": ("HTTP_PROTOCOLS",),
    "uvicorn.protocols.http.httptools_impl": tuple(
        f"HttpToolsProtocol.{name}"
        for name in (
            "connection_made", "connection_lost", "data_received", "shutdown", "timeout_keep_alive_handler",
            "on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete",
            "on_response_complete", "connections", "cycle", "loop", "transport", "timeout_keep_alive",
        )
    ),
}  # fmt: skip

# Module -> text that its source must contain: environment variables, loggers, and the layout of BentoML's store.
MENTIONED = {
    "_bentoml_impl.server.serving": ("PROMETHEUS_MULTIPROC_DIR", "_bentoml_impl.worker."),
    "bentoml.serving": ("BENTOML_CONTAINERIZED",),
    "_bentoml_impl.server.app": ("__is_ready__",),
    "bentoml._internal.monitoring.default": ("bentoml_monitor_data",),
    "bentoml._internal.configuration.containers": ('"bentos"',),
    "bentoml._internal.store": ('"latest"',),
    "bentoml._internal.bento.bento": ('"bento.yaml"',),
}
