"""Training from tar shards is training from the same photos in folders, to the last bit, also when it is resumed."""

from __future__ import annotations

from pathlib import Path

import torch

from lipsformer.datasets import open_dataset
from tests.support.shards import write_shard
from tests.support.tiny_training import CLASSES, contents, make_photos, train_tiny


def shards_of(photos: Path, root: Path) -> Path:
    """The photos of make_photos in shards of five, in the order in which folders list them."""
    data = open_dataset(photos)
    for split in (data.train, data.validation):
        for start in range(0, len(split), 5):
            content = {}
            for number in range(start, min(start + 5, len(split))):
                content[f"{number:04}.jpg"] = Path(split.where(number)).read_bytes()
                content[f"{number:04}.cls"] = CLASSES[int(split.labels[number])].encode()
            write_shard(root / f"{split.name}-{start:03}.tar", content)
    return root


def test_shards_train_as_folders_do(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    shards = shards_of(photos, tmp_path / "shards")
    train_tiny(photos, tmp_path / "one", epochs=2)
    train_tiny(shards, tmp_path / "two", "workers=2", epochs=2)
    (one, records), (two, same_records) = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert [record["loss"] for record in records if "loss" in record] == [
        record["loss"] for record in same_records if "loss" in record
    ]
    for name, tensor in one.items():
        if not name.startswith("state/"):
            assert torch.equal(tensor, two[name]), name
