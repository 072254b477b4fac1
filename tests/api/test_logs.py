"""A line of the log as a machine reads it."""

import json
import logging
import sys
from datetime import datetime

from app.logs import JsonLines


def line(message: str, *arguments: object, **more: object) -> dict[str, object]:
    record = logging.LogRecord("app.store", logging.WARNING, __file__, 1, message, arguments, None)
    vars(record).update(more)
    text = JsonLines().format(record)
    assert "\n" not in text
    told: dict[str, object] = json.loads(text)
    return told


def test_a_line_is_one_object_with_its_time_level_logger_and_message() -> None:
    told = line("%s is\nbroken", "digits")
    assert list(told) == ["time", "level", "logger", "message"]
    assert (told["level"], told["logger"], told["message"]) == ("warning", "app.store", "digits is\nbroken")
    assert datetime.fromisoformat(str(told["time"])).tzinfo is not None


def test_fields_stand_beside_the_message() -> None:
    told = line("asked", fields={"status": 200, "model": None})
    assert (told["status"], told["model"]) == (200, None)


def test_a_traceback_is_in_the_line() -> None:
    try:
        raise LookupError("on purpose")
    except LookupError:
        told = line("a bug", exc_info=sys.exc_info())
    assert "LookupError: on purpose" in str(told["exception"])
