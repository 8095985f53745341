"""What lies in deploy/: it names only what the server has, and runs it with as few rights as it can."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from bentoml._internal.container.generate import BENTO_UID_GID

from lipsformer import InputError
from lipsformer.serving.http.auth import KeyRing
from lipsformer.serving.launch import DRAIN_SECONDS
from lipsformer.serving.settings import Settings
from tests.support.http.running import running

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
FILES = sorted(file for file in DEPLOY.rglob("*") if file.suffix in (".json", ".yaml", ".yml"))
ASKING = [  # that ask for metrics
    DEPLOY / "grafana" / "lipsformer.json",
    DEPLOY / "prometheus" / "alerts.yml",
    DEPLOY / "prometheus" / "alerts.test.yml",
    BASE / "autoscaling.yaml",
    DEPLOY / "kubernetes" / "monitoring" / "adapter.yaml",
]
COMPOSE_ONLY = {"LIPSFORMER_IMAGE", "LIPSFORMER_SECRETS"}  # what compose.yaml asks its user for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside BentoML, while it is imported


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The samples that the server has, each with its labels."""
    from prometheus_client import REGISTRY

    from lipsformer.serving.observability import open_metrics

    open_metrics()
    ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    found = {}
    for collector in REGISTRY._collector_to_names:
        for metric in collector.describe() if hasattr(collector, "describe") else ():
            if metric.name.startswith("lipsformer_"):
                labels = {*getattr(collector, "_labelnames", ()), *(["le"] if metric.type == "histogram" else [])}
                found.update({metric.name + end: labels for end in ends[metric.type]})
    assert len(found) > 15
    return found


def strange(text: str, known: dict[str, set[str]]) -> set[str]:
    """Metrics in `text` that the server has not, and labels that they have not."""
    alternatives = [
        f"lipsformer_{name}" for group in re.findall(r"lipsformer_\(([a-z_|]+)\)", text) for name in group.split("|")
    ]
    names = {*re.findall(r"\blipsformer_[a-z_]+\b", text), *alternatives} - {"lipsformer_"}
    wrong = names - set(known)
    for name, matchers in re.findall(r"\b(lipsformer_[a-z_]+)\{([^}]*)\}", text):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - {"instance", "job"}
        wrong |= {f"{name}{{{label}}}" for label in labels - known.get(name, labels)}
    return wrong


@pytest.mark.parametrize("file", ASKING, ids=lambda file: file.name)
def test_queries_name_metrics_that_the_server_has(file: Path, known: dict[str, set[str]]) -> None:
    assert strange(file.read_text(), known) == set()


def test_a_query_of_what_is_not_there_would_be_found(known: dict[str, set[str]]) -> None:
    assert strange("rate(lipsformer_request_total[5m])", known) == {"lipsformer_request_total"}
    assert strange('lipsformer_requests_total{code="500"}', known) == {"lipsformer_requests_total{code}"}
    assert strange("^lipsformer_(pending|depth)$", known) == {"lipsformer_depth"}


def test_the_dashboard_shows_every_metric(known: dict[str, set[str]]) -> None:
    text = (DEPLOY / "grafana" / "lipsformer.json").read_text()
    shown = set(re.findall(r"\blipsformer_[a-z_]+\b", text))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in known} == {
        re.sub("_(bucket|sum|count)$", "", name) for name in shown
    }
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_variables_are_settings_of_the_server(file: Path) -> None:
    settings = {f"LIPSFORMER_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"LIPSFORMER_[A-Z_]*[A-Z]", file.read_text())) - COMPOSE_ONLY
    assert named <= settings


def resources(file: Path) -> dict[str, Any]:
    """The one document of a YAML file."""
    document: dict[str, Any] = yaml.safe_load(file.read_text())
    return document


def test_compose_runs_the_server_with_few_rights() -> None:
    compose = resources(DEPLOY / "compose.yaml")
    server = compose["services"]["server"]
    assert server["user"] == f"{BENTO_UID_GID}:{BENTO_UID_GID}"
    assert server["read_only"] is True
    assert [entry.split(":")[0] for entry in server["tmpfs"]] == ["/tmp"]  # noqa: S108
    assert server["cpus"] == server["environment"]["LIPSFORMER_THREADS"] * server["environment"]["LIPSFORMER_WORKERS"]
    assert {"mem_limit", "pids_limit", "healthcheck", "restart"} <= set(server)
    assert int(server["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS
    assert server["command"] == ["--timeout-graceful-shutdown", str(DRAIN_SECONDS)]
    assert server["environment"]["LIPSFORMER_API_KEYS_FILE"] == f"/run/secrets/{server['secrets'][0]}"
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert set(service["secrets"]) <= set(compose["secrets"]), name
        assert (name == "server") == ("profiles" not in service)
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), volume
    assert set(resources(DEPLOY / "compose.gpu.yaml")["services"]) == {"server"}


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_of_compose_tells_ready_from_not(status: int) -> None:
    class Stub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    _, *command = resources(DEPLOY / "compose.yaml")["services"]["server"]["healthcheck"]["test"]
    assert command[0] == "python"  # there is no curl in the image
    with running(stub := http.server.HTTPServer(("127.0.0.1", 0), Stub)):
        code = command[2].replace(":3000/", f":{stub.server_port}/")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode == 0) == (status == 200)


def test_pods_have_few_rights_and_end_in_peace() -> None:
    pod = resources(BASE / "deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == BENTO_UID_GID
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # LIPSFORMER_PORT and the like would be taken for settings
    assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {"/tmp"}  # noqa: S108
    assert container["args"] == ["--timeout-graceful-shutdown", str(DRAIN_SECONDS)]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + DRAIN_SECONDS
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["LIPSFORMER_THREADS"] == container["resources"]["limits"]["cpu"]
    keys = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert variables["LIPSFORMER_API_KEYS_FILE"] == f"{keys}/keys"


def test_everything_is_about_the_same_pods() -> None:
    labels = resources(BASE / "deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    assert resources(BASE / "service.yaml")["spec"]["selector"] == labels
    assert resources(BASE / "disruption.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert resources(BASE / "network.yaml")["spec"]["podSelector"]["matchLabels"] == labels
    assert resources(BASE / "network.yaml")["spec"]["egress"] == []
    monitor = resources(DEPLOY / "kubernetes" / "monitoring" / "servicemonitor.yaml")["spec"]["selector"]
    assert resources(BASE / "service.yaml")["metadata"]["labels"] == monitor["matchLabels"]


def test_the_example_secret_opens_nothing(tmp_path: Path) -> None:
    example = resources(DEPLOY / "kubernetes" / "secret.example.yaml")
    (tmp_path / "keys").write_text(example["stringData"]["keys"])
    with pytest.raises(InputError, match="shorter than"):
        KeyRing(tmp_path / "keys")
    used = [file for file in DEPLOY.rglob("kustomization.yaml") if "secret.example" in str(resources(file))]
    assert used == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize(("folder", "gpus"), [(".", None), ("gpu", "1")])
def test_kustomize_builds_each_folder(folder: str, gpus: str | None) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes" / folder], capture_output=True, text=True, check=True
    )
    built = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    assert set(built) == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    }
    (container,) = built["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"].startswith("registry.example.org/")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    folder = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    check = ["promtool", "test", "rules", "alerts.test.yml"]
    done = subprocess.run(
        check, cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = folder / "alerts.yml"
    alerts.write_text(alerts.read_text().replace('fallback="true"', 'fallback="yes"'))
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode != 0


def test_every_alert_has_a_test() -> None:
    alerts = [
        rule["alert"] for group in resources(DEPLOY / "prometheus" / "alerts.yml")["groups"] for rule in group["rules"]
    ]
    (_, wrong) = resources(DEPLOY / "prometheus" / "alerts.test.yml")["tests"]
    (firing,) = wrong["promql_expr_test"]
    assert firing["exp_samples"] == [{"labels": "{}", "value": len(alerts)}]
