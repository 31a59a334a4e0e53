"""Faults that are reported together, and what goes from one process to another."""

from __future__ import annotations

import pickle

import pytest

from kgcli.errors import Checks, KgError, MissingError, SeveralErrors, UsageError, raise_all


def refuse(error):
    raise error


def test_all_faults_are_raised_in_order():
    with pytest.raises(SeveralErrors) as raised, Checks() as check:
        assert check(int, "3") == 3
        assert check(refuse, MissingError("a")) is None
        check(refuse, SeveralErrors([UsageError("b"), UsageError("c")]))
    assert [str(error) for error in raised.value.errors] == ["a", "b", "c"]
    assert raised.value.exit_code == MissingError.exit_code


def test_a_single_fault_is_raised_as_it_is():
    with pytest.raises(MissingError, match="^a$"), Checks() as check:
        check(refuse, MissingError("a"))
    raise_all([])


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), Checks() as check:
        check(refuse, KgError("a"))
        check(divmod, 1, 0)


def test_several_errors_go_to_another_process():
    sent = pickle.loads(pickle.dumps(SeveralErrors([UsageError("a"), MissingError("b")])))
    assert [type(error) for error in sent.errors] == [UsageError, MissingError] and sent.exit_code == 2
