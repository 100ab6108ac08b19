"""The search for cycles is off where it is asked to be, and as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from genai_kb.collector import without_collector


@without_collector()
def enabled_meanwhile() -> bool:
    return gc.isenabled()


def test_the_collector_is_off_meanwhile_and_on_again() -> None:
    assert gc.isenabled()
    assert not enabled_meanwhile()
    assert gc.isenabled()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(KeyError), without_collector():
        raise KeyError
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        enabled_meanwhile()
        assert not gc.isenabled()
    finally:
        gc.enable()
