"""Structured logs on stderr: text for people, JSON for collectors, pod and container ids as fields of their own."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

FIELDS: Final = ("pod", "container")
LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class TextFormatter(logging.Formatter):
    """2026-01-02T03:04:05.678Z INFO  lifecycle.pods: message pod=... container=..."""

    def format(self, record: logging.LogRecord) -> str:
        ids = "".join(f" {name}={value}" for name, value in _ids(record).items())
        line = f"{_time(record)} {record.levelname:<7} {_module(record)}: {record.getMessage()}{ids}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, module, message, pod, container, error."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "module": _module(record),
            "message": record.getMessage(),
            **_ids(record),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(level: str, form: str) -> None:
    """Send the logs of this process to stderr. May be called again to change level or form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for chatty in ("httpx", "httpcore", "grpc", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _ids(record: logging.LogRecord) -> dict[str, str]:
    return {name: value for name in FIELDS if (value := getattr(record, name, ""))}


def _module(record: logging.LogRecord) -> str:
    return record.name.removeprefix("holdfast.")


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
