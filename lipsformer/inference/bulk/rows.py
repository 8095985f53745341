"""A row of bulk prediction: one image's answer, or why it has none."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Self

from lipsformer.images.open import ImageError
from lipsformer.inference.classification import Classification
from lipsformer.inference.runtimes import Features

__all__ = ["OK", "Refusal", "Row", "text"]

OK = "ok"


class Refusal(NamedTuple):
    """Why an image has no answer: `status` is an `ImageError`'s reason, "missing" or "unreadable"."""

    status: str
    detail: str

    @classmethod
    def of(cls, error: ImageError, name: str = "image") -> Self:
        """The refusal of an image, whose name the message need not repeat."""
        return cls(error.reason, text(str(error).removeprefix(f"{name}: ")))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One image: `label`, `index` and `score` are those of its top class, `top_k` has more of them.

    `status` is "ok" or that of a `Refusal`, whose `detail` it then has. A refused image has no other values.
    `accepted` is None for a model that was not calibrated for it, `certified_radius` for one without a certificate.
    `width` and `height` are those of the upright image in pixels. `features` (C,) are float32 in native byte order, if
    they were asked for.
    """

    name: str
    status: str
    detail: str | None = None
    top_k: tuple[dict[str, Any], ...] = ()
    accepted: bool | None = None
    certified_radius: float | None = None
    width: int | None = None
    height: int | None = None
    features: bytes | None = None

    @classmethod
    def answered(cls, name: str, answer: Classification, size: tuple[int, int], features: Features | None) -> Self:
        """The row of an image that was classified; `features` (C,) if it is to have them."""
        return cls(
            name=name,
            status=OK,
            top_k=tuple(dict(vars(prediction)) for prediction in answer),
            accepted=answer.accepted,
            certified_radius=answer.certified_radius,
            width=size[0],
            height=size[1],
            features=None if features is None else features.tobytes(),
        )

    @classmethod
    def refused(cls, name: str, refusal: Refusal) -> Self:
        """The row of an image without an answer."""
        return cls(name=name, status=refusal.status, detail=refusal.detail)

    def columns(self) -> dict[str, Any]:
        """The values by column, in the order of the columns; `features` are left out."""
        top = self.top_k[0] if self.top_k else {"label": None, "index": None, "score": None}
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            **top,
            "accepted": self.accepted,
            "certified_radius": self.certified_radius,
            "top_k": list(self.top_k),
            "width": self.width,
            "height": self.height,
        }


def text(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become escapes such as \\udcff."""
    return name.encode("utf-8", "backslashreplace").decode()
