"""Stop strings: the outcome depends on the text, never on how it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq.generation.stops import StopMatcher


def feed(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops)
    out = [matcher.push(piece) for piece in pieces]
    out.append(matcher.flush())
    return out, matcher.matched


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow way: try every end, then every stop that ends there, the longest first."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
def test_any_cutting_gives_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    out, matched = feed(pieces, stops)
    assert ("".join(out), matched) == cut("".join(pieces), stops)


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_only_a_possible_beginning_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(letter) for letter in text)
    if matcher.matched is None:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        # Nothing longer could have begun a stop string, so no more could have been shown.
        for i in range(len(shown)):
            assert not any(stop.startswith(text[i:]) for stop in stops)


def test_a_stop_across_pieces_is_never_half_shown() -> None:
    out, matched = feed(["Hello <", "|en", "d|", "> more"], ["<|end|>"])
    assert out == ["Hello ", "", "", "", ""]
    assert matched == "<|end|>"


def test_a_false_alarm_is_released() -> None:
    out, matched = feed(["a<|e", "x", "it"], ["<|end|>"])
    assert out == ["a", "<|ex", "it", ""]
    assert matched is None


def test_the_end_of_the_text_releases_what_was_held() -> None:
    assert feed(["abc<|"], ["<|end|>"]) == (["abc", "<|"], None)


def test_the_match_that_is_complete_first_wins() -> None:
    assert feed(["xabcd"], ["abcd", "bc"]) == (["xa", ""], "bc")
    assert feed(["x", "a", "b", "c", "d"], ["abcd", "bc"])[1] == "bc"
    assert feed(["xabc"], ["bc", "abc"]) == (["x", ""], "abc")


def test_without_stops_everything_passes() -> None:
    assert feed(["a", "", "b"], []) == (["a", "", "b", ""], None)


def test_text_after_a_match_is_dropped() -> None:
    matcher = StopMatcher(["\n"])
    assert matcher.push("one\ntwo") == "one"
    assert matcher.push("three") == ""
    assert matcher.flush() == ""


def test_characters_beyond_ascii() -> None:
    assert feed(["吾輩は", "猫で", "ある。名前"], ["である。"]) == (
        ["吾輩は", "猫", "", ""],
        "である。",
    )


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        StopMatcher(["a", ""])
