"""The headers of Trace Context, as the recommendation's own rules say; and whatever else may come in their place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_sidecar.tracecontext import MAX_MEMBERS, Trace, parse_trace

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{ID}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (GOOD, True),
        (f"00-{ID}-{SPAN}-00", False),
        (f"00-{ID}-{SPAN}-02", False),
        (f"00-{ID}-{SPAN}-ff", True),
        (f"  {GOOD}\t", True),
        (f"cc-{ID}-{SPAN}-01", True),
        (f"cc-{ID}-{SPAN}-01-what-the-future-will-be-like", True),
    ],
)
def test_a_parent_is_read(header: str, is_sampled: bool) -> None:
    assert parse_trace([header]) == Trace(ID, SPAN, is_sampled)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [GOOD, GOOD],
        [f"{GOOD},{GOOD}"],
        [f"ff-{ID}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{ID}-{'0' * 16}-01"],
        [GOOD.upper()],
        [GOOD + "-"],
        [GOOD + "-more"],
        [f"cc-{ID}-{SPAN}-01.more"],
        [f"0-{ID}-{SPAN}-01"],
        [f"00-{ID[1:]}-{SPAN}-01"],
        [f"00-{ID}-{SPAN}-1"],
        [f"00-{ID}-{SPAN}"],
        [f"00_{ID}_{SPAN}_01"],
        [GOOD + "\n"],
    ],
)
def test_a_parent_that_is_malformed_is_none(headers: list[str]) -> None:
    assert parse_trace(headers, ["a=1"]) is None


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ([], ""),
        (["congo=t61rcWkgMzE"], "congo=t61rcWkgMzE"),
        (["a=1, b=2", "tenant@vendor=x y"], "a=1,b=2,tenant@vendor=x y"),
        (["a=1,,b=2,"], "a=1,b=2"),
        (["a=1,a=2"], ""),
        (["a"], ""),
        (["A=1"], ""),
        (["a=b=c"], ""),
        (["a=\u00e9"], ""),
        (["a=" + "x" * 257], ""),
        ([",".join(f"a{n}=1" for n in range(MAX_MEMBERS))], ",".join(f"a{n}=1" for n in range(MAX_MEMBERS))),
        ([",".join(f"a{n}=1" for n in range(MAX_MEMBERS + 1))], ""),
    ],
)
def test_a_state_is_passed_on_whole_or_not_at_all(headers: list[str], state: str) -> None:
    assert parse_trace([GOOD], headers) == Trace(ID, SPAN, is_sampled=True, state=state)


@given(st.lists(st.text(max_size=60) | st.just(GOOD), max_size=2), st.lists(st.text(max_size=60), max_size=3))
def test_whatever_comes_is_a_trace_or_none(parents: list[str], states: list[str]) -> None:
    found = parse_trace(parents, states)
    assert found is None or (len(found.trace_id), len(found.span_id)) == (32, 16)
