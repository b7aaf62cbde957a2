"""Logs go to stderr: a line a person can read on a terminal, one JSON object a line anywhere else."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor


def configure(level: str) -> None:
    """Route structlog and the standard library's loggers (ours, aiokafka's, uvicorn's) the same way."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    # structlog's own defaults print every frame's local variables: tokens, passwords, events.
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if sys.stderr.isatty()
        else [
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _drop_colours, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # aiokafka tells every rebalance and metadata refresh at info; its warnings are what one wants to see.
    logging.getLogger("aiokafka").setLevel(max(logging.WARNING, root.level))


def _drop_colours(_: object, __: str, event: EventDict) -> EventDict:
    """uvicorn gives each message a second time, with terminal escapes."""
    event.pop("color_message", None)
    return event
