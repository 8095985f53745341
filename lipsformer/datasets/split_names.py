"""Names of splits: train, val and test, and what else people call them."""

from __future__ import annotations

import re

__all__ = ["looks_like_split", "split_of", "split_within"]

TRAIN = ("train", "training", "trn", "trainset", "trainingset", "traindata", "trainingdata")
VAL = ("val", "valid", "validation", "validate", "dev", "devel", "development", "valset", "validset", "validationset",
       "devset", "valdata", "validationdata")  # fmt: skip
TEST = ("test", "testing", "tst", "testset", "testingset", "testdata", "testingdata", "holdout", "heldout", "eval",
        "evaluation", "evalset")  # fmt: skip
SPLITS = {name: split for split, names in (("train", TRAIN), ("val", VAL), ("test", TEST)) for name in names}
LOOSE = re.compile(r"(?:^|[^a-z])(train|test|val(?:id)?|dev)|(train|test|val(?:id)?|dev)(?:ing|ation)?(?:$|[^a-z])")


def split_of(name: str) -> str | None:
    """The split whose name `name` is, in any case and with any separators: "Training", "test-set", "hold_out"."""
    return SPLITS.get(re.sub(r"[\W_]", "", name.lower()))


def split_within(name: str) -> tuple[str, str] | None:
    """The split that a word of `name` stands for, and the rest of the name: "val2017" gives ("val", "2017").

    None if there is no such word. The first one counts: "imagenet-val-000012" belongs to "val".
    """
    for word in re.finditer(r"[a-z]+", name.lower()):
        if word.group() in SPLITS:
            return SPLITS[word.group()], name[: word.start()] + name[word.end() :]
    return None


def looks_like_split(name: str) -> str | None:
    """The split that `name` suggests, be it by the beginning or the end of a word: "trainA", "mytest"."""
    found = split_within(name)
    if found is not None:
        return found[0]
    loose = LOOSE.search(name.lower())
    return None if loose is None else SPLITS[loose.group(1) or loose.group(2)]
