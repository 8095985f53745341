"""The OpenAPI document is exact: schemathesis reads it and sends whatever it allows to a real server."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from lipsformer.images.open import ImageLimits
from lipsformer.images.samples import SAMPLES
from lipsformer.serving.http.problems import REASONS
from lipsformer.serving.openapi import describe_api
from lipsformer.serving.settings import Settings
from tests.support.http.server import KEY, Keyed, app_running
from tests.support.images.odd import collection
from tests.support.models.acceptance import ACCEPTED, LOW_SCORE, UNFAMILIAR
from tests.support.trained import Trained

PHOTO = (SAMPLES / "Kaiser.jpg").read_bytes()
MANUAL = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
# Bytes that are a valid body and no image are refused, and too many fields with 413; in a batch each on its own, within
# an answer of 200: a number in place of a file is bytes as well by the time that it is sent.
CHECKS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 413, 415, 422]
[checks.negative_data_rejection]
expected-statuses = [400, 401, 405, 413, 415, 422]
[[operations]]
include-path = "/classify_batch"
[operations.checks.negative_data_rejection]
expected-statuses = [200, 400, 401, 405, 413, 415, 422]
# A schema cannot say how many values a shape needs, nor which version is served.
[[operations]]
include-path-regex = "^/v2/models/"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 413, 415, 422]
[operations.checks.negative_data_rejection]
expected-statuses = [400, 401, 404, 405, 413, 415, 422]
"""


def document(*, keys: bool = False) -> dict[str, Any]:
    return describe_api(version="1", keys=keys, limits=ImageLimits(), max_images=64, model_name="lipsformer")


def try_out(folder: Path, url: str, api: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Runs schemathesis on a document and the server at `url`."""
    (folder / "api.json").write_text(json.dumps(api))
    (folder / "schemathesis.toml").write_text(CHECKS)
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["--config-file", "schemathesis.toml", "run", "api.json", "--url", url, "--checks", "all", "--no-color"]
    command += ["--continue-on-failure", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("keys", [False, True])
def test_the_document_is_valid(keys: bool) -> None:
    api = document(keys=keys)
    validate(api, cls=OpenAPIV31SpecValidator)
    assert ("security" in api) is keys
    del api["paths"]["/classify"]["post"]["responses"]["200"]["description"]
    with pytest.raises(OpenAPIValidationError):
        validate(api, cls=OpenAPIV31SpecValidator)


@pytest.mark.slow
def test_a_server_does_what_its_document_says(keyed: Keyed, tmp_path: Path) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    api = httpx.get(f"{keyed.url}/openapi.json", headers=key).json()
    done = try_out(
        tmp_path, keyed.url, api, "--header", f"Authorization:Bearer {KEY}", "--header", f"X-API-Key:{KEY}",
        "--max-examples", "40",
        "--phases", "examples,coverage,fuzzing",
        "--exclude-path-regex", "/versions/",  # the same handlers as the paths without
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(api['paths']) - 3} selected / {len(api['paths'])} total" in done.stdout


@pytest.mark.slow
def test_a_wrong_document_is_found_out(server: str, tmp_path: Path) -> None:
    api = copy.deepcopy(document())
    del api["paths"]["/classify"]["post"]["responses"]["415"]
    api["paths"]["/info"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["required"] = ["nothing"]
    page = api["paths"]["/"]["get"]["responses"]["200"]
    page["content"] = {"text/plain": page["content"].pop("text/html")}
    api["paths"]["/livez"]["get"]["responses"]["200"]["headers"] = {
        "X-Nothing": {"required": True, "schema": {"type": "string"}}
    }
    done = try_out(tmp_path, server, api, "--max-examples", "5", "--phases", "coverage,fuzzing")
    assert done.returncode == 1, done.stdout + done.stderr
    for failure in ("Undocumented status code", "Response violates schema", "Undocumented Content-Type",
                    "Missing required response headers"):  # fmt: skip
        assert failure in done.stdout


def check_answer(api: dict[str, Any], response: httpx.Response) -> None:
    """Checks a response against the document: its status, type, headers and content."""
    described = api["paths"][response.request.url.path]["post"]["responses"][str(response.status_code)]
    schema = described["content"][response.headers["content-type"]]["schema"]
    Draft202012Validator({**schema, "components": api["components"]}).validate(response.json())
    for name, header in described["headers"].items():
        assert name in response.headers or not header["required"]


def test_answers_and_refusals_are_as_described(server: str) -> None:
    api = httpx.get(f"{server}/openapi.json").json()
    refused = set()
    with httpx.Client(base_url=server, timeout=30) as client:
        for response in (
            client.post("/classify", content=PHOTO, headers={"Content-Type": "image/jpeg"}),
            client.post("/classify", files={"image": PHOTO}, data={"top_k": "2"}),
            client.post("/classify", files={"image": (None, "text")}),
            client.post("/classify", files={"image": PHOTO}, data={"top_k": "none"}),
            client.post("/classify", files={"image": PHOTO}, data={"top_k": "none"}, params={"top_k": 1}),
            client.post("/classify", json={}),
            client.post("/classify", content=b"", headers={"Content-Type": "image/png"}),
            client.post("/classify", files={"photo": PHOTO}),
            client.post("/classify", files=[("image", PHOTO)] * 2),
            client.post("/classify", content=b"", headers={"Content-Type": "multipart/form-data; boundary=x"}),
            client.post("/classify_batch", files=[("images", b"none"), ("images", PHOTO), ("image", b"")]),
            client.post("/classify_batch", files=[("images", (None, "text"))]),
            client.post("/classify_batch", content=PHOTO, headers={"Content-Type": "image/jpeg"}),
            *(client.post("/classify", content=odd.content, headers={"Content-Type": "image/jpeg"})
              for odd in collection()[::7] if not odd.costly),
        ):  # fmt: skip
            check_answer(api, response)
            if response.status_code != 200:
                refused.add(response.json()["reason"])
                assert REASONS[response.json()["reason"]] == response.status_code
    assert {"empty", "bad_top_k", "not_an_image", "wrong_content_type", "damaged", "several_images"} <= refused
    assert {"missing_field", "malformed_form", "not_a_file"} <= refused


def test_answers_with_a_rule_are_as_described(choosy: Trained) -> None:
    headers = {"Content-Type": "image/jpeg"}
    with app_running(choosy.bundle) as app, httpx.Client(base_url=app.url, timeout=30) as client:
        api = client.get("/openapi.json").json()
        info = api["paths"]["/info"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator(info).validate(client.get("/info").json())
        for photo in (ACCEPTED, LOW_SCORE, UNFAMILIAR):
            check_answer(api, client.post("/classify", content=photo.read_bytes(), headers=headers))
        answer = client.post("/classify_batch", files=[("images", UNFAMILIAR.read_bytes()), ("images", b"none")])
        check_answer(api, answer)
    schema = {"components": api["components"], "$ref": "#/components/schemas/BatchAnswer"}
    validator, result = Draft202012Validator(schema), answer.json()["results"][0]
    for wrong in ({"reason": "ugly"}, {"reason": ""}, {"accepted": None}, {"accepted": "no"}, {"distance": -1}):
        assert not validator.is_valid({**result, **wrong})
    for name in ("accepted", "reason", "distance"):  # all of them or none
        assert not validator.is_valid({key: value for key, value in result.items() if key != name})
    assert validator.is_valid({name: result[name] for name in ("name", "predictions")})


def test_an_answer_that_is_not_as_described_is_noticed(server: str) -> None:
    api = httpx.get(f"{server}/openapi.json").json()
    response = httpx.post(f"{server}/classify", content=PHOTO, headers={"Content-Type": "image/jpeg"})
    api["components"]["schemas"]["Prediction"]["properties"].pop("score")
    with pytest.raises(ValidationError, match="score"):
        check_answer(api, response)


def test_the_manual_names_every_reason_and_limit() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", MANUAL, re.MULTILINE)
    assert {reason: int(status) for status, reason in rows} == REASONS
    limits = dict(re.findall(r"^\| `LIPSFORMER_(\w+)` \| (\d+) \|", MANUAL, re.MULTILINE))
    settings = Settings.from_environment({})
    known = {"MAX_BYTES": settings.limits.max_bytes, "MAX_PIXELS": settings.limits.max_pixels}
    known["DECODE_MEMORY"] = settings.decode_memory
    assert {name: int(value) for name, value in limits.items()} == {
        name: known.get(name, getattr(settings, name.lower(), None)) for name in limits
    }
    assert len(limits) >= 8


def test_the_clients_in_the_manual_work(server: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)[0], names)  # noqa: S102 - our own manual
    assert len(names["classify"](str(SAMPLES / "Kaiser.jpg"), server)) == 5
    (tmp_path / "photo.jpg").write_bytes(PHOTO[:2000])
    with pytest.raises(ValueError, match=r"damaged: .*save it again"):
        names["classify"](str(tmp_path / "photo.jpg"), server)
    for name in ("photo.jpg", "a.jpg", "b.png"):
        (tmp_path / name).write_bytes(PHOTO)
    commands = [line.strip() for line in MANUAL.splitlines() if line.startswith("    curl ")]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.replace("http://127.0.0.1:3000", server))
        answer = json.loads(subprocess.run([*words, "--silent"], cwd=tmp_path, capture_output=True, check=True).stdout)
        assert "predictions" in answer or all("predictions" in result for result in answer["results"])
