"""Sharing models on the Hugging Face Hub: a network with the Hub's methods, and uploads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from lipsformer.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lipsformer.checkpoints.hub import (
    HUB_PREFIX,
    WEIGHTS_FILE,
    fetch_from_hub,
    hub_errors,
    hub_progress,
    import_hub,
    parse_hub_name,
)
from lipsformer.checkpoints.pretrained import is_trained
from lipsformer.checkpoints.save import save_checkpoint

from .model_card import card_metadata, write_model_card
from .upload import CARD_FILE, CONFIG_FILE, config_text, open_upload

__all__ = ["LipsFormer", "push_to_hub"]

USAGE = """```sh
pip install 'lipsformer[hub,train]'
lipsformer predict {name} photo.jpg
```

```python
import lipsformer

predictor = lipsformer.load_predictor("{name}")
print(predictor.predict(["photo.jpg"], top_k=3))
```"""


class LipsFormer(nn.Module):
    """A trained network as one module: with its classes, preprocessing and metrics, and the Hub's usual methods.

    `network` is the network itself, `classes` are its class names, in the order of the logits. The logits are those of
    the training: divided by `temperature` they are calibrated. `acceptance` says which answers are accepted, if the
    checkpoint has a rule for that, and `reference` has the answers to the photos that it was calibrated on.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network = checkpoint.model
        self.config = checkpoint.config
        self.classes = checkpoint.classes
        self.preprocessing = checkpoint.preprocessing
        self.metrics = checkpoint.metrics
        self.temperature = checkpoint.temperature
        self.acceptance = checkpoint.acceptance
        self.reference = checkpoint.reference
        self.train(checkpoint.model.training)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, token: str | None = None) -> Self:
        """Load a model in eval mode: OWNER/NAME of the Hub, a folder of `save_pretrained`, or any checkpoint or name.

        Raises:
            InputError: if there is no such model, or it cannot be fetched.
        """
        path = Path(name)
        if path.is_dir():
            path = path / WEIGHTS_FILE
        elif not path.exists() and (str(name).startswith(HUB_PREFIX) or not is_trained(str(name))):
            address = f"{HUB_PREFIX}{str(name).removeprefix(HUB_PREFIX)}"
            path = fetch_from_hub(address if revision is None else f"{address}@{revision}", token)
        return cls(load_checkpoint(path))

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalized images (B, 3, image_size, image_size) to logits (B, classes)."""
        logits: Tensor = self.network(images)
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps normalized images (B, 3, image_size, image_size) to pooled features."""
        return self.network.forward_features(images)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint and its `config.json` into a folder."""
        path = Path(folder)
        save_checkpoint(
            path / WEIGHTS_FILE,
            config=self.config,
            weights=self.network.state_dict(),
            classes=self.classes,
            preprocessing=self.preprocessing,
            metrics=self.metrics,
            temperature=self.temperature,
            acceptance=self.acceptance,
            reference=self.reference,
        )
        (path / CONFIG_FILE).write_text(config_text(load_checkpoint(path / WEIGHTS_FILE)), encoding="utf-8")

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the model to OWNER/NAME[@BRANCH]; `options` are those of `push_to_hub`. Returns the commit's URL."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            address = f"{HUB_PREFIX}{repository.removeprefix(HUB_PREFIX)}"
            return push_to_hub(Path(folder, WEIGHTS_FILE), address, **options)


def push_to_hub(
    model: str | Path,
    name: str,
    *,
    private: bool | None = None,
    license_id: str | None = None,
    message: str | None = None,
    replace_card: bool = False,
    token: str | None = None,
) -> str:
    """Upload a checkpoint to `hf:OWNER/NAME[@BRANCH]` in one commit, with its configuration and a model card.

    A missing repository or branch is created. A card that is there already is kept, since people edit it.

    Args:
        model: a checkpoint's path, or the name of a trained model.
        name: where to upload it.
        private: whether a new repository is private; by default as the owner's settings say.
        license_id: an identifier of the Hub for the card, such as "apache-2.0".
        message: of the commit.
        replace_card: write the card again if there is one.
        token: of the Hub; by default $HF_TOKEN or that of `hf auth login`.

    Returns:
        The URL of the commit.

    Raises:
        InputError: if the checkpoint cannot be read, huggingface-hub is missing, or the Hub refuses.
    """
    repository, branch = parse_hub_name(name)
    hub = import_hub(name)
    path, checkpoint = open_upload(model)
    with hub_errors(name), hub_progress():
        api = hub.HfApi(token=token, library_name="lipsformer")
        api.create_repo(repository, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        files = {WEIGHTS_FILE: path, CONFIG_FILE: config_text(checkpoint).encode()}
        if replace_card or not api.file_exists(repository, CARD_FILE, revision=branch):
            title = repository.partition("/")[2]
            card = write_model_card(checkpoint, title, USAGE.format(name=f"{HUB_PREFIX}{repository}"))
            files[CARD_FILE] = f"{card_metadata(checkpoint.metrics, title, license_id)}\n\n{card}".encode()
        operations = [
            hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=content) for file, content in files.items()
        ]
        commit = api.create_commit(
            repository, operations, commit_message=message or "Upload a LipsFormer", revision=branch
        )
    return str(commit.commit_url)
