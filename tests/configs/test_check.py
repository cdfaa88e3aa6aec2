"""The typed check: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from gpt2x.config.check import check, check_available
from gpt2x.config.option import ConfigError, option, show


@dataclass(kw_only=True)
class Inner:
    size: int = option(1, "how large", minimum=1, maximum=10)
    rate: float = option(0.5, "how fast", above=0, below=1)
    rates: list[float] = option([0.5], "how fast each", minimum=0)
    weights: dict[str, float] = option({}, "how heavy each", maximum=9)

    def check(self) -> None:
        if self.size == 7:
            raise ConfigError("size", self.size, "seven is not liked")

    def check_available(self) -> None:
        if self.size == 9:
            raise ConfigError("size", self.size, "not on this machine")


@dataclass(kw_only=True)
class Root:
    text: str | None = option(None, "a text")
    needed: str = option(help="what is needed")
    flag: bool = option(False, "a flag")
    mode: str = option("auto", "a mode", choices=("auto", "online"))
    count: int | None = option(None, "a count")
    inner: Inner = field(default_factory=Inner)


def ok(**data):
    return check(Root, {"needed": "x", **data})


def refusal(**data) -> str:
    with pytest.raises(ConfigError) as caught:
        ok(**data)
    return str(caught.value)


def test_defaults_fill_what_is_not_given():
    assert ok() == Root(needed="x")
    assert ok().inner.rates is not ok().inner.rates


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"count": 3}, 3),
        ({"count": 1e4}, 10_000),
        ({"count": None}, None),
        ({"text": "a"}, "a"),
        ({"text": 12}, "12"),
        ({"text": ""}, ""),
        ({"flag": True}, True),
        ({"inner": {"rate": 1e-3}}, 1e-3),
        ({"inner": {"rates": [0, 1]}}, [0.0, 1.0]),
        ({"inner": {"weights": {" a": 1, 7: 2.5}}}, {" a": 1.0, "7": 2.5}),
        ({"inner": {"weights": {}}}, {}),
    ],
)
def test_accepted(data, expected):
    ((key, value),) = data.items()
    part = ok(**data)
    if key == "inner":
        part, (key,) = part.inner, value
    assert getattr(part, key) == expected
    assert type(getattr(part, key)) is type(expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"count": 2.5}, "count=2.5: expected a whole number or null"),
        ({"count": "3"}, "count=3: expected a whole number or null"),
        ({"count": True}, "count=true: expected a whole number or null"),
        ({"flag": 1}, "flag=1: expected true or false"),
        ({"flag": "yes"}, "flag=yes: expected true or false"),
        ({"flag": None}, "flag=null: expected true or false"),
        ({"text": True}, "text=true: expected text or null"),
        ({"text": ["a"]}, "text=[a]: expected text or null"),
        ({"needed": None}, "needed=null: expected text"),
        ({"needed": "???"}, "needed must be given: what is needed"),
        ({"mode": "onlin"}, "mode=onlin: expected one of auto, online; did you mean online?"),
        ({"inner": {"rate": "1e-3x"}}, "inner.rate=1e-3x: expected a number"),
        ({"inner": {"rate": float("nan")}}, "inner.rate=nan: expected a finite number"),
        ({"inner": {"rate": float("inf")}}, "inner.rate=inf: expected a finite number"),
        ({"inner": {"rate": 0}}, "inner.rate=0: must be above 0 and below 1"),
        ({"inner": {"rate": 1}}, "inner.rate=1: must be above 0 and below 1"),
        ({"inner": {"size": 0}}, "inner.size=0: must be at least 1 and at most 10"),
        ({"inner": {"size": 11}}, "inner.size=11: must be at least 1 and at most 10"),
        ({"inner": {"rates": 0.5}}, "inner.rates=0.5: expected a list of numbers"),
        ({"inner": {"rates": [0.5, -1]}}, "inner.rates=[0.5,-1]: must be at least 0"),
        ({"inner": {"rates": [0.5, "a"]}}, "inner.rates=[0.5,a]: expected a number"),
        ({"inner": {"weights": [1]}}, "inner.weights=[1]: expected a mapping of texts to numbers, such as {a: 1, ' b': 2}"),
        ({"inner": {"weights": None}}, "inner.weights=null: expected a mapping of texts to numbers"),
        ({"inner": {"weights": {"a": "b"}}}, "inner.weights={'a': 'b'}: expected a number for 'a', not b"),
        ({"inner": {"weights": {"a": True}}}, "expected a number for 'a', not true"),
        ({"inner": {"weights": {"a": float("nan")}}}, "expected a finite number for 'a', not nan"),
        ({"inner": {"weights": {"a:1": None}}}, "expected a number for 'a:1', not null; a space belongs after the colon"),
        ({"inner": {"weights": {True: 1}}}, "put quotes around true if it is meant as text"),
        ({"inner": {"weights": {"a": 1, "b": 10}}}, "inner.weights={'a': 1, 'b': 10}: must be at most 9"),
        ({"inner": {"size": 7}}, "inner.size=7: seven is not liked"),
        ({"inner": 3}, "inner=3: this holds several settings"),
        (
            {"inner": {"sise": 3}},
            "did you mean inner.size?\n  settings of inner: size, rate, rates, weights",
        ),
        ({"size": 3}, "size=3: no such setting; did you mean inner.size?"),
        ({"iner": {"size": 3}}, "iner.size=3: no such setting; did you mean inner.size?"),
        ({"inner.size": 3}, "in a file, write it nested: inner: {size: ...}"),
        ({"zzz": 3}, "zzz=3: no such setting\n  at the top level: text, needed, flag"),
    ],
)
def test_refused(data, message):
    assert message in refusal(**data)


def test_all_problems_are_named_at_once():
    message = refusal(flag=3, inner={"size": 99, "rate": "x"}, other=1)
    assert [line.split("=")[0] for line in message.splitlines() if "=" in line] == ["other", "flag", "inner.size", "inner.rate"]


def test_what_this_machine_cannot_do_is_asked_only_when_a_run_starts():
    config = ok(inner={"size": 9})
    with pytest.raises(ConfigError, match=r"inner\.size=9: not on this machine"):
        check_available(config)
    check_available(dataclasses.replace(config, inner=Inner()))


def test_long_and_unprintable_values_are_shown_short():
    assert show("\n") == r"'\n'"
    assert len(show("x" * 10_000)) < 300
    assert len(show([[["x"] * 1000] * 1000] * 1000)) < 3000
    assert [show(v) for v in (None, True, [1, None], "", 0.1)] == ["null", "true", "[1,null]", "''", "0.1"]
