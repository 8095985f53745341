"""Models on the Hugging Face Hub: the same to the bit after a round trip, nothing executed, failures in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from lipsformer import LipsFormer, load_checkpoint, load_predictor, save_checkpoint
from lipsformer.checkpoints.hub import parse_hub_name
from lipsformer.integrations.hub import push_to_hub
from lipsformer.integrations.model_card import write_model_card
from lipsformer.system.errors import InputError
from lipsformer.train.initial_weights import StartingPoint
from tests.support.command import Run
from tests.support.http.hub_server import HubServer, hub_server
from tests.support.trained import Trained

# huggingface-hub 2.4 uploads with an argument that its HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "hf:someone/fruit-classifier"
WRITER = "hf_writer"
REPOSITORY = "someone/fruit-classifier"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(str(tmp_path / "hub"), monkeypatch) as server:
        yield server


@pytest.fixture
def pushed(server: HubServer, trained: Trained, monkeypatch: pytest.MonkeyPatch, run: Run) -> HubServer:
    """A Hub with the trained checkpoint; nobody is logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    status, out, err = run("push", trained.checkpoint, NAME)
    assert status == 0, err
    assert out.startswith(f"{server.url}/{REPOSITORY}/commit/")
    monkeypatch.delenv("HF_TOKEN")
    server.requests.clear()
    return server


def refusal(run: Run, *words: object) -> str:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "hf_" not in err
    return err


def test_a_round_trip_is_exact(pushed: HubServer, trained: Trained) -> None:
    files = pushed.repositories[REPOSITORY]["main"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert files["model.safetensors"] == trained.checkpoint.read_bytes()
    before, after = load_checkpoint(trained.checkpoint), load_checkpoint(NAME)
    assert (after.classes, after.preprocessing, after.config, after.metrics) == (
        before.classes,
        before.preprocessing,
        before.config,
        before.metrics,
    )
    images = torch.randn(2, 3, before.config.image_size, before.config.image_size)
    with torch.no_grad():
        assert torch.equal(before.model(images), after.model(images))
    assert load_predictor(NAME).classes == before.classes


def test_from_pretrained_and_push_to_hub_are_exact(
    pushed: HubServer, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = LipsFormer.from_pretrained(REPOSITORY), load_checkpoint(trained.checkpoint)
    images = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    assert not model.training
    url = model.push_to_hub("someone/copy", token=WRITER)
    assert url.startswith(f"{pushed.url}/someone/copy/commit/")
    copy = LipsFormer.from_pretrained("hf:someone/copy", revision="main")
    model.save_pretrained(tmp_path / "saved")
    for other in (
        model,
        copy,
        LipsFormer.from_pretrained(tmp_path / "saved"),
        LipsFormer.from_pretrained(trained.checkpoint),
    ):
        with torch.no_grad():
            assert torch.equal(other(images), expected.model(images))
            assert torch.equal(other.forward_features(images), expected.model.forward_features(images))
        assert (other.classes, other.preprocessing) == (expected.classes, expected.preprocessing)


def test_only_the_weights_are_downloaded(pushed: HubServer, run: Run, trained: Trained, tmp_path: Path) -> None:
    pushed.repositories[REPOSITORY]["main"]["pytorch_model.bin"] = b"a pickle"
    status, out, _ = run("download", NAME)
    assert status == 0
    assert Path(out.strip()).read_bytes() == trained.checkpoint.read_bytes()
    assert {path.rpartition("/")[2] for _, path, _ in pushed.requests} <= {"model.safetensors", "agent-harnesses"}
    names = [path.name for path in (tmp_path / "hub").glob("*/snapshots/*/*")]
    assert names == ["model.safetensors"]


def test_revisions_are_separate(
    pushed: HubServer, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(trained.checkpoint)
    names = [f"renamed {index}" for index in range(len(loaded.classes))]
    save_checkpoint(
        tmp_path / "other.safetensors",
        config=loaded.config,
        weights=loaded.model.state_dict(),
        classes=names,
        preprocessing=loaded.preprocessing,
        metrics=loaded.metrics,
    )
    push_to_hub(tmp_path / "other.safetensors", f"{NAME}@v2", token=WRITER)
    assert load_checkpoint(f"{NAME}@v2").classes == tuple(names)
    assert load_checkpoint(NAME).classes == loaded.classes


def test_the_card_says_what_the_checkpoint_knows(pushed: HubServer, trained: Trained) -> None:
    files = pushed.repositories[REPOSITORY]["main"]
    card, loaded = files["README.md"].decode(), load_checkpoint(trained.checkpoint)
    data: Any = huggingface_hub.ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("lipsformer", "image-classification", None)
    assert f"lipsformer predict {NAME} photo.jpg" in card
    for fact in (*loaded.classes[:3], f"{loaded.config.image_size} px", loaded.preprocessing.interpolation):
        assert fact in card
    config = json.loads(files["config.json"])
    assert tuple(config["classes"]) == loaded.classes
    assert config["preprocessing"]["image_size"] == loaded.preprocessing.image_size


def test_the_card_says_how_far_to_trust_the_scores(trained: Trained, choosy: Trained) -> None:
    plain = write_model_card(load_checkpoint(trained.checkpoint), "title", "usage")
    assert "Not calibrated" in plain
    assert "it gives every image one of them" in plain
    card = write_model_card(load_checkpoint(choosy.checkpoint), "title", "usage")
    assert "divided by the temperature 1.5." in card
    assert "if its score is at least 0.700 and the distance from the training images at most 1.000" in card
    assert "At most 5.0% of the accepted are wrong, with a confidence of 90%" in card
    assert "it gives every image one of them" not in card


def test_the_card_of_the_included_model_has_its_accuracy(
    server: HubServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert run("push", "lipsformer_cifar10", NAME, "--license", "apache-2.0", "--private")[0] == 0
    assert REPOSITORY in server.private
    card = server.repositories[REPOSITORY]["main"]["README.md"].decode()
    data: Any = huggingface_hub.ModelCard(card).data
    assert data.license == "apache-2.0"
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, round(result.metric_value, 4)) == ("cifar10", "accuracy", 0.8667)
    assert "86.67%" in card


def test_an_edited_card_is_kept(pushed: HubServer, trained: Trained, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pushed.repositories[REPOSITORY]["main"]
    files["README.md"] = b"edited"
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert run("push", trained.checkpoint, NAME)[0] == 0
    assert files["README.md"] == b"edited"
    assert run("push", trained.checkpoint, NAME, "--replace-card")[0] == 0
    assert files["README.md"] != b"edited"


def test_class_names_cannot_inject_markup(server: HubServer, trained: Trained, tmp_path: Path) -> None:
    loaded = load_checkpoint(trained.checkpoint)
    model = LipsFormer(loaded)
    model.classes = ("<img src=x>", "[a](b)", *loaded.classes[2:])
    model.push_to_hub(REPOSITORY, token=WRITER)
    card = server.repositories[REPOSITORY]["main"]["README.md"].decode()
    assert "<img" not in card.replace(r"\<img", "")
    assert "[a](b)" not in card


def test_a_broken_download_resumes(pushed: HubServer, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 5_000)  # what it keeps is whole chunks
    pushed.cuts = [10_000]
    assert load_checkpoint(NAME).classes == trained.classes
    assert [asked for method, _, asked in pushed.requests if method == "GET" and asked] == ["bytes=10000-"]


def test_a_damaged_file_is_removed(pushed: HubServer, run: Run, trained: Trained) -> None:
    pushed.damage = True
    status, _, err = run("download", NAME)
    assert status == 1
    assert "model.safetensors is damaged and was removed from the cache" in err
    pushed.damage = False
    assert load_checkpoint(NAME).classes == trained.classes


def test_the_cache_serves_offline(
    pushed: HubServer, trained: Trained, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = huggingface_hub.constants
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set, and it is not in the cache" in refusal(run, "download", NAME)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        )
        assert "http://127.0.0.1:9 cannot be reached, and it is not in the cache" in refusal(run, "download", NAME)
    load_checkpoint(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_checkpoint(NAME).classes == trained.classes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:someone/none", "no such repository, or a private one; check the name, or log in with `hf auth login`"),
        (f"{NAME}@none", "has no revision 'none'"),
        ("hf:someone/gated", "access is gated; accept the terms at"),
        ("hf:someone/private", "no such repository, or a private one"),
        ("hf:someone/empty", "has no model.safetensors; `lipsformer push` writes such repositories"),
        ("hf:fruit", "not a name on the Hugging Face Hub; write hf:OWNER/NAME"),
        ("hf:../../etc", "not a name on the Hugging Face Hub"),
        ("hf:a/b@../c", "not a name on the Hugging Face Hub"),
    ],
)
def test_what_is_missing_is_reported(name: str, message: str, pushed: HubServer, run: Run) -> None:
    pushed.repositories |= {f"someone/{kind}": {"main": {}} for kind in ("gated", "private", "empty")}
    pushed.gated, pushed.private = {"someone/gated"}, {"someone/private"}
    assert message in refusal(run, "download", name)


def test_a_bad_token_is_reported(
    pushed: HubServer, trained: Trained, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token is not valid; log in with `hf auth login`" in refusal(run, "download", NAME)
    assert "the token is not valid" in refusal(run, "push", trained.checkpoint, NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "the token has no permission" in refusal(run, "push", trained.checkpoint, NAME)
    monkeypatch.delenv("HF_TOKEN")
    assert "`hf auth login`" in refusal(run, "push", trained.checkpoint, NAME)


def test_a_failing_hub_is_reported(
    pushed: HubServer, trained: Trained, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed.status = 500
    assert "cannot be reached (it answers 500)" in refusal(run, "download", NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert "the Hub answers 500" in refusal(run, "push", trained.checkpoint, NAME)


def test_retries_are_silent_in_a_new_process() -> None:
    """huggingface_hub sets the level of its log when it is first imported, which is later than one would think."""
    program = """if True:
        import logging
        from lipsformer.checkpoints.hub import hub_progress
        with hub_progress():
            import huggingface_hub
            huggingface_hub.hf_hub_download
            logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s")
        logging.getLogger("huggingface_hub.utils._http").warning("a warning of another program")
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["a warning of another program"]


def test_another_file_in_the_repository_is_reported(pushed: HubServer, run: Run, samples: list[Path]) -> None:
    pushed.repositories[REPOSITORY]["main"]["model.safetensors"] = b"no safetensors"
    assert "not a readable checkpoint" in refusal(run, "predict", NAME, samples[0])


def test_what_cannot_be_pushed_is_reported(server: HubServer, trained: Trained, tmp_path: Path, run: Run) -> None:
    assert "no such checkpoint" in refusal(run, "push", tmp_path / "none.safetensors", NAME)
    assert "write hf:OWNER/NAME" in refusal(run, "push", trained.checkpoint, "someone/fruit")
    loaded = load_checkpoint(trained.checkpoint)
    loaded.model.head.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        LipsFormer(loaded).push_to_hub(REPOSITORY, token=WRITER)
    assert server.repositories == {}


def test_a_missing_extra_is_reported(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "huggingface-hub is not installed; pip install 'lipsformer[hub]'" in refusal(run, "download", NAME)


def test_names_have_one_form() -> None:
    assert parse_hub_name("hf:a/b") == ("a/b", None)
    assert parse_hub_name("hf:Some-one/fruit_1.5@refs/pr/1") == ("Some-one/fruit_1.5", "refs/pr/1")
    for name in ("hf:a/b@", "hf:a/b/c", "a/b", "hf:-a/b", "hf:a/b?x", "hf:a/b@-x", "hf:a\n/b"):
        with pytest.raises(InputError, match=r"write hf:OWNER/NAME"):
            parse_hub_name(name)


def test_training_can_start_from_the_hub(pushed: HubServer, trained: Trained) -> None:
    assert StartingPoint.resolve({"name": NAME}).classes == trained.classes
