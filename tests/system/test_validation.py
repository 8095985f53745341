"""One-line messages for what pydantic finds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lipsformer.system.errors import InputError, suggest
from lipsformer.system.validation import input_error, one_line_errors


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Settings:
    count: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    size: Annotated[int, Field(ge=1, le=9)] = 3
    pair: Annotated[tuple[int, ...], Field(min_length=2, max_length=2)] = (1, 2)
    names: Annotated[tuple[str, ...], Field(min_length=1)] = ("a",)
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    table: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size == 7:
            raise ValueError("size=7 is unlucky; use 8")


CASES = [
    ({"count": 0}, "count=0: a whole number of at least 1 is needed"),
    ({"count": "1"}, "count='1': a whole number of at least 1 is needed"),
    ({"count": True}, "count=True: a whole number of at least 1 is needed"),
    ({"share": 1}, "share=1: a number above 0 and below 1 is needed"),
    ({"share": float("nan")}, "share=nan: a number above 0 and below 1 is needed"),
    ({"size": 10}, "size=10: a whole number from 1 to 9 is needed"),
    ({"pair": (1, 2, 3)}, "pair=(1, 2, 3): 2 whole numbers are needed"),
    ({"pair": (1, "2")}, "pair[1]='2': a whole number is needed"),
    ({"names": ()}, "names=(): 1 or more entries are needed"),
    ({"names": ("a", 1)}, "names[1]=1: text is needed"),
    ({"kind": "c"}, "kind='c': use 'a' or 'b'"),
    ({"flag": 1}, "flag=1: true or false is needed"),
    ({"table": []}, "table=[]: a table is needed"),
    ({"size": 7}, "size=7 is unlucky; use 8"),
    ({"cuont": 1}, "unknown field 'cuont': did you mean 'count'?"),
    ({"kind": "x" * 10**6}, f"kind='{'x' * 59}...: use 'a' or 'b'"),
]


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_a_constructor_says_what_is_needed_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as failure:
        Settings(**{"count": 1, **changes})
    assert str(failure.value) == message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match=r"^count is missing$"):
        Settings()  # type: ignore[call-arg]


def test_without_a_schema_a_message_has_the_bound_that_was_broken() -> None:
    with pytest.raises(ValidationError) as failure:
        TypeAdapter(dict[str, Annotated[int, Field(ge=1)]]).validate_python({"workers": 0})
    assert str(input_error(failure.value, "settings")) == "settings: workers=0: it must be at least 1"


def test_a_message_lists_the_first_of_many_names_and_counts_the_rest() -> None:
    names = [f"n{number:04}" for number in range(1000)]
    assert suggest("color", names[:22]) == f"known: {', '.join(names[:22])}"
    assert suggest("color", names) == f"known: {', '.join(names[:22])} and 978 more"
    assert suggest("n0999x", names) == "did you mean 'n0999'?"
