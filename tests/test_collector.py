"""The search for cycles is off where it is asked to be, and as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from genai_kb.collector import kept_to_the_end, without_collector


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


def test_what_is_kept_to_the_end_is_never_searched() -> None:
    try:
        with kept_to_the_end():
            assert not gc.isenabled()
            made: list[list[int]] = [[]]
        assert gc.isenabled()
        assert not any(found is made for found in gc.get_objects())
    finally:
        gc.unfreeze()
