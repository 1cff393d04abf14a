"""The log: JSON lines for machines, colours for a terminal, always key and value.

Log lines go to stderr, as stdout belongs to what a command prints. What libraries say through the standard library's
logging takes the same way out.

structlog imports rich where it finds it, to paint tracebacks: 10 MiB and 0.05 s that no role has a use for. A role
therefore imports this module before any other that logs.
"""

import logging
import sys
from typing import Any, Literal

import msgspec

from netloom.shells import imported_later

_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]  # what an import takes for "there is none"
try:
    with imported_later({"pickle": ("PicklingError",)}):
        import structlog
finally:
    del sys.modules["rich"]
    if _rich is not None:
        sys.modules["rich"] = _rich

Format = Literal["auto", "json", "console"]

_JSON = msgspec.json.Encoder(enc_hook=str)


def _to_json(event: Any, **_options: Any) -> str:
    return _JSON.encode(event).decode()


def configure(format: Format = "auto", level: str = "info") -> None:
    """Sets up the log of the whole process. `auto`: for people on a terminal, else JSON. Raises ValueError."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}; known: debug, info, warning, error")
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if console else "iso", utc=not console),
    ]
    last: list[structlog.types.Processor]
    if console:
        # The default formatter would print every local variable, tokens included.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
