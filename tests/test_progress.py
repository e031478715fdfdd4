"""The counter is for people who watch, and for nobody else."""

import sys

import pytest

from fsad_lib.progress import counter


@pytest.mark.parametrize("watched", [True, False])
def test_a_counter_is_shown_on_a_terminal_only(monkeypatch, capsys, watched):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    show = counter("evaluate gear")
    if not watched:
        assert show is None
        return
    show(1, 2), show(2, 2, "more")
    assert capsys.readouterr().err == "\revaluate gear 1/2\revaluate gear 2/2\n"
