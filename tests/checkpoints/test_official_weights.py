"""Official weights by name: whatever the server does, the right weights or one clear line."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipsformer import load_checkpoint, load_predictor
from lipsformer.checkpoints import official_weights as module
from lipsformer.checkpoints.convert import convert
from lipsformer.checkpoints.official_weights import OFFICIAL, OfficialWeights
from lipsformer.checkpoints.pretrained import fetch_model, resolve_model
from lipsformer.model.variants import SWIN, VARIANTS, make_config
from lipsformer.system import resumable_download
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import InputError
from lipsformer.train.initial_weights import StartingPoint
from tests.checkpoints.test_convert import official_state
from tests.support.command import Run
from tests.support.http.file_server import FileServer, file_server

NAME = "lipsformer_swin_nano.stand_in"
NANO = SWIN["nano"]
TINY = "lipsformer_swin_tiny.in1k"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file as the official code writes it."""
    path = tmp_path_factory.mktemp("official") / "nano.pth"
    torch.save({"model": official_state(NANO), "max_accuracy": 12.5, "epoch": 3}, path)
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, official: Path) -> Iterator[FileServer]:
    """Serves the file that `NAME` stands for."""
    monkeypatch.setattr(resumable_download, "WAIT_SECONDS", 0)
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIPSFORMER_WEIGHTS", raising=False)
    with file_server() as server:
        server.content = official.read_bytes()
        url = f"{server.url}/nano.pth"
        monkeypatch.setitem(
            OFFICIAL, NAME, dataclasses.replace(OFFICIAL[TINY], url=url, variant="lipsformer_swin_nano")
        )
        yield server


def kept(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache" / "weights" / NAME
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def refusal(run: Run, *options: str, name: str = NAME, status: int = 2) -> str:
    found, out, err = run("download", name, *options)
    assert (found, out) == (status, "")
    last = err.splitlines()[-1]
    assert last.startswith("lipsformer: ")
    return last


@pytest.mark.parametrize("cuts", [[], [1000, 2_000_000]])
def test_a_name_is_downloaded_once_and_equals_the_conversion(
    cuts: list[int], server: FileServer, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cuts, resumed = list(cuts), len(cuts)
    convert(official, tmp_path / "own.safetensors")
    own, fetched = load_checkpoint(tmp_path / "own.safetensors"), load_checkpoint(NAME)
    assert f"with SHA-256 {sha256_of(official)}" in capsys.readouterr().err
    for key, value in own.model.state_dict().items():
        assert torch.equal(value, fetched.model.state_dict()[key])
    assert fetched.config == own.config == make_config("lipsformer_swin_nano")
    assert fetched.metrics == {"max_accuracy": 12.5, "epoch": 3}
    assert fetched.classes[:2] == ("tench", "goldfish")
    assert kept(tmp_path) == [f"{NAME}.safetensors", "source.json"]
    requests = len(server.requests)
    assert load_predictor(NAME).classes == fetched.classes
    assert len(server.requests) == requests == 1 + resumed


def test_the_command_prints_the_path_and_demands_a_hash(
    server: FileServer, official: Path, tmp_path: Path, run: Run
) -> None:
    digest = sha256_of(official)
    assert f"has SHA-256 {digest}, not {'0' * 64} as demanded" in refusal(run, "--sha256", "0" * 64, status=1)
    assert kept(tmp_path) == []
    assert "64 hexadecimal digits" in refusal(run, "--sha256", "beef")
    status, out, _ = run("download", NAME, "--sha256", digest.upper(), "--json")
    checkpoint = tmp_path / "cache" / "weights" / NAME / f"{NAME}.safetensors"
    assert (status, json.loads(out)) == (0, {"checkpoint": str(checkpoint), "sha256": digest})
    assert "as demanded" in refusal(run, "--sha256", "0" * 64, status=1)  # of what is in the cache
    assert run("download", NAME)[1] == f"{checkpoint}\n"
    assert "did you mean 'lipsformer_swin_tiny.in1k'?" in refusal(run, name="lipsformer_swin_tiny.in1")


def test_a_shipped_model_is_there_already(run: Run) -> None:
    status, out, err = run("download", "lipsformer_cifar10")
    assert (status, err) == (0, "")
    assert Path(out.strip()).is_file()
    assert "not " + "0" * 64 in refusal(run, "--sha256", "0" * 64, name="lipsformer_cifar10", status=1)


def test_another_file_under_the_same_name_is_refused(
    server: FileServer, official: Path, tmp_path: Path, run: Run
) -> None:
    fetch_model(NAME)
    (tmp_path / "cache" / "weights" / NAME / f"{NAME}.safetensors").unlink()
    state = official_state(NANO, seed=1)
    torch.save({"model": state}, tmp_path / "other.pth")
    server.content = (tmp_path / "other.pth").read_bytes()
    message = refusal(run, status=1)
    assert f"but the one fetched before had {sha256_of(official)}" in message
    assert kept(tmp_path) == ["source.json"]
    (tmp_path / "cache" / "weights" / NAME / "source.json").unlink()
    assert fetch_model(NAME).sha256 == sha256_of(tmp_path / "other.pth")


def not_finite() -> bytes:
    state = official_state(NANO)
    state["head.bias"][7] = float("nan")
    return saved(state)


def without_a_tensor() -> bytes:
    state = official_state(NANO)
    del state["layers.1.blocks.0.alpha1.scale"]
    return saved(state)


def another_network(**changes: Any) -> bytes:
    return saved(official_state(NANO.replace(**changes)))


def saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save({"model": state}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 but no checkpoint", "not a checkpoint that torch.save wrote"),
        (b"", "not a checkpoint that torch.save wrote"),
        (lambda: another_network(num_classes=9), "num_classes is 9, not 1000"),
        (lambda: another_network(depths=(1, 1, 1, 1)), "depths is (1, 1, 1, 1), not (2, 2, 6, 2)"),
        (not_finite, "head.bias has values that are not finite"),
        (without_a_tensor, "1 missing: layers.1.blocks.0.alpha1.scale"),
        (lambda: saved({"weight": torch.ones(3)}), "no layers.0.blocks.0.attn.relative_position_bias_table"),
        (lambda: saved({"weight": threading.Thread}), "names threading.Thread"),
    ],
)
def test_another_file_is_never_kept(
    content: object, message: str, server: FileServer, official: Path, tmp_path: Path, run: Run
) -> None:
    server.content = content() if callable(content) else content  # type: ignore[assignment]
    assert message in refusal(run)
    assert kept(tmp_path) == []
    server.content = official.read_bytes()
    assert fetch_model(NAME).sha256 == sha256_of(official)


def test_a_length_that_is_too_short_is_seen(server: FileServer, tmp_path: Path, run: Run) -> None:
    server.headers = {"Content-Length": "100000"}
    assert "is not its checkpoint" in refusal(run)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_says_what_to_do(status: int, server: FileServer, run: Run) -> None:
    server.status = status
    message = refusal(run)
    assert f"nano.pth: the server answers {status}" in message
    assert "set LIPSFORMER_WEIGHTS to its folder" in message


def test_offline_says_what_to_do(server: FileServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OFFICIAL, NAME, dataclasses.replace(OFFICIAL[NAME], url="http://127.0.0.1:9/nano.pth"))
    message = refusal(run)
    assert "cannot be reached" in message
    assert "get nano.pth another way and set LIPSFORMER_WEIGHTS to its folder" in message


def test_a_folder_by_hand_replaces_the_download(
    server: FileServer, official: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "by hand"
    folder.mkdir()
    monkeypatch.setenv("LIPSFORMER_WEIGHTS", str(folder))
    assert f"has no nano.pth and no {NAME}.safetensors" in refusal(run)
    (folder / "nano.pth").write_bytes(official.read_bytes())
    fetched = fetch_model(NAME)
    assert fetched.sha256 == sha256_of(official)
    assert fetched.checkpoint.is_relative_to(tmp_path / "cache")
    assert (folder / "nano.pth").is_file()
    fetched.checkpoint.rename(folder / f"{NAME}.safetensors")
    assert resolve_model(NAME) == folder / f"{NAME}.safetensors"
    assert kept(tmp_path) == ["source.json"]
    assert server.requests == []


@pytest.mark.slow
def test_processes_that_fetch_at_once_download_once(server: FileServer, official: Path, tmp_path: Path) -> None:
    script = (
        "import dataclasses, sys\nfrom lipsformer.checkpoints import official_weights as w\n"
        f"w.OFFICIAL['{NAME}'] = dataclasses.replace(w.OFFICIAL['{TINY}'], url=sys.argv[1], "
        f"variant='lipsformer_swin_nano')\nprint(w.fetch_official('{NAME}').sha256)"
    )
    command = [sys.executable, "-c", script, f"{server.url}/nano.pth"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0].strip() for process in running]
    assert answers == [sha256_of(official)] * 2
    assert len(server.requests) == 1
    assert kept(tmp_path) == [f"{NAME}.safetensors", "source.json"]


def test_training_starts_from_a_name(server: FileServer) -> None:
    start = StartingPoint.resolve({"name": NAME, "drop_path": 0.3})
    assert start.classes[0] == "tench"
    assert start.config == make_config("lipsformer_swin_nano", drop_path=0.3)
    assert start.weights is not None
    assert len(server.requests) == 1


def test_the_reference_file_has_the_official_outputs_by_its_name(
    server: FileServer, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(reference / "official_swin_micro.pth", tmp_path / "own.safetensors")
    config = load_checkpoint(tmp_path / "own.safetensors").config
    (tmp_path / "classes.txt").write_text("\n".join(f"class {index}" for index in range(config.num_classes)))
    monkeypatch.setitem(
        OFFICIAL, NAME, dataclasses.replace(OFFICIAL[NAME], variant="micro", classes=tmp_path / "classes.txt")
    )
    monkeypatch.setattr("lipsformer.model.variants.VARIANTS", {"micro": config})
    server.content, server.cuts = (reference / "official_swin_micro.pth").read_bytes(), [1_000_000]
    recorded = np.load(reference / "official_swin_micro_io.npz")
    with torch.no_grad():
        logits = load_checkpoint(NAME).model(torch.from_numpy(recorded["x"]))
    torch.testing.assert_close(logits, torch.from_numpy(recorded["logits"]), rtol=1e-4, atol=1e-4)


def test_the_official_entry_is_the_documented_one() -> None:
    weights: OfficialWeights = OFFICIAL[TINY]
    assert weights.url.endswith("/cyh1112/LipsFormer/releases/download/checkpoint/lipsformer-swin-tiny.pth")
    assert (weights.variant, weights.top1, weights.dataset) == ("lipsformer_swin_tiny", 0.827, "ImageNet-1k")
    assert module.LARGEST > 3 * 4 * 31_000_000 * 1.1  # weights and both moments of the optimizer


def test_the_classes_of_imagenet_are_in_the_order_of_their_synsets() -> None:
    names = OFFICIAL[TINY].classes.read_text(encoding="utf-8").splitlines()
    assert len(names) == len(set(names)) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 340: "zebra", 999: "toilet tissue"}
    assert {index: names[index] for index in known} == known


def test_the_classes_of_imagenet_are_those_of_timm() -> None:
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        pytest.skip("timm is not installed")
    folder = Path(spec.origin).parent / "data" / "_info"
    synsets = (folder / "imagenet_synsets.txt").read_text().split()
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines)
    first = [lemmas[synset].split(",")[0] for synset in synsets]
    names = OFFICIAL[TINY].classes.read_text(encoding="utf-8").splitlines()
    differing = {index: (a, b) for index, (a, b) in enumerate(zip(first, names, strict=True)) if a != b}
    assert differing == {134: ("crane", "crane bird"), 639: ("maillot", "maillot tank suit")}  # twice among timm's


def test_models_lists_what_is_trained(server: FileServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("lipsformer_cswin_nano", "lipsformer_swin_nano", "lipsformer_swin_tiny")  # tracing all takes seconds
    monkeypatch.setattr("lipsformer.model.variants.VARIANTS", {name: VARIANTS[name] for name in few})
    assert "82.70%  ImageNet-1k, published figure, downloaded at first use" in run("models")[1]
    fetch_model(NAME)
    rows = {row["name"]: row["weights"] for row in json.loads(run("models", "--json")[1])}
    listed = [(one["name"], one["published"], one["local"]) for weights in rows.values() for one in weights]
    assert listed == [("lipsformer_cifar10", False, True), (NAME, True, True), (TINY, True, False)]
    assert rows["lipsformer_swin_tiny"][0]["parameters"] == 30_908_578


def test_a_damaged_pin_is_reported(server: FileServer, tmp_path: Path) -> None:
    fetch_model(NAME)
    (tmp_path / "cache" / "weights" / NAME / "source.json").write_text("[]")
    with pytest.raises(InputError, match=r"source\.json: damaged; remove the folder"):
        fetch_model(NAME)


def test_what_is_kept_under_the_name_is_checked(
    server: FileServer, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = fetch_model(NAME).checkpoint
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1])
    assert f"{checkpoint}: not a readable checkpoint" in (message := refusal(run))
    assert message.endswith("remove it to fetch the weights again")
    checkpoint.write_bytes(resolve_model("lipsformer_cifar10").read_bytes())
    assert f"{checkpoint} is a different model; remove it" in refusal(run)
    monkeypatch.setenv("LIPSFORMER_WEIGHTS", str(tmp_path))
    by_hand = checkpoint.rename(tmp_path / f"{NAME}.safetensors")
    assert f"{by_hand} is a different model; put the right one there" in refusal(run)
    by_hand.write_bytes(whole)
    assert run("download", NAME)[:2] == (0, f"{by_hand}\n")
    assert f"{by_hand} has SHA-256 {sha256_of(by_hand)}, not" in refusal(run, "--sha256", "0" * 64, status=1)


def test_a_misspelled_name_does_not_lead_to_untrained_weights() -> None:
    with pytest.raises(InputError, match=r"did you mean 'lipsformer_swin_tiny\.in1k'\?"):
        StartingPoint.resolve({"name": "lipsformer_swin_tiny.in1"})
