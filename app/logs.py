"""What the log looks like: a line to read, or a JSON object a line to be searched."""

import json
import logging
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["plain", "json"]


class JsonLines(logging.Formatter):
    """time, level, logger, message; `fields` of the record as they are; a traceback as text."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(form: LogFormat) -> None:
    """Everything from info on goes to standard error, uvicorn's lines too."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its dialect at each start
