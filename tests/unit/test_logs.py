"""schemas.logs: one JSON object a line when stderr is no terminal; the trace of an error shows no variable's value."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from schemas import logs

SECRET = "tok_do_not_print"


class Stderr(io.StringIO):
    terminal = False

    def isatty(self) -> bool:
        return self.terminal


Configure = Callable[..., Stderr]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Configure logging to a stderr of its own; after the test all is as before."""
    root, aiokafka = logging.getLogger(), logging.getLogger("aiokafka")
    before = root.handlers, root.level, aiokafka.level

    def configure(level: str, *, terminal: bool = False) -> Stderr:
        stderr = Stderr()
        stderr.terminal = terminal
        monkeypatch.setattr(sys, "stderr", stderr)  # here, because pytest sets its own before the test
        logs.configure(level)
        return stderr

    yield configure
    root.handlers, root.level, aiokafka.level = before
    structlog.reset_defaults()


def lines(stderr: Stderr) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.getvalue().splitlines()]


def fail_with_secrets_at_hand(token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    raise RuntimeError(f"{len(headers)} header")


def test_one_json_object_a_line_for_our_loggers_and_theirs(configure: Configure) -> None:
    stderr = configure("info")
    structlog.get_logger("ours").info("two\nlines", topic="t", count=2)
    logging.getLogger("theirs").warning("said %s", "ü", extra={"color_message": "\033[1m"})
    logging.getLogger("theirs").debug("too quiet")
    ours, theirs = lines(stderr)
    assert (ours["event"], ours["topic"], ours["count"]) == ("two\nlines", "t", 2)
    assert (ours["level"], ours["logger"]) == ("info", "ours")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("said ü", "warning", "theirs")
    assert "color_message" not in theirs
    assert all(entry["timestamp"].endswith("Z") for entry in (ours, theirs))


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level(level: str, heard: int, configure: Configure) -> None:
    stderr = configure(level)
    log = structlog.get_logger("ours")
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    assert len(lines(stderr)) == heard


def test_aiokafka_is_heard_from_warnings_up_even_at_debug(configure: Configure) -> None:
    """At debug it would log every record that is sent."""
    stderr = configure("debug")
    logging.getLogger("aiokafka.producer").debug("Sending (key=… value=…)")
    logging.getLogger("aiokafka.producer").warning("w")
    assert [entry["event"] for entry in lines(stderr)] == ["w"]


@pytest.mark.parametrize("terminal", [False, True], ids=["json", "terminal"])
@pytest.mark.parametrize("logger", ["ours", "theirs"])
def test_trace_of_an_error_has_no_values(terminal: bool, logger: str, configure: Configure) -> None:
    stderr = configure("info", terminal=terminal)
    try:
        fail_with_secrets_at_hand(SECRET)
    except RuntimeError:
        if logger == "ours":
            structlog.get_logger("ours").exception("unforeseen")
        else:
            logging.getLogger("theirs").exception("unforeseen")
    text = stderr.getvalue()
    assert "fail_with_secrets_at_hand" in text  # there is a trace
    assert "1 header" in text
    assert SECRET not in text
    if not terminal:
        [entry] = lines(stderr)
        assert entry["event"] == "unforeseen"


def test_a_terminal_gets_lines_for_people(configure: Configure) -> None:
    stderr = configure("info", terminal=True)
    structlog.get_logger("ours").info("hello", topic="t")
    assert "hello" in stderr.getvalue()
    assert not stderr.getvalue().startswith("{")
