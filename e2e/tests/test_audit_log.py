"""What is read of an audit log."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from netloom_e2e import audit_log, gauges

EVENT = '{"verb": "list", "requestReceivedTimestamp": "2026-01-01T00:00:%02d.5Z"}'


def test_an_event_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    log, lists = tmp_path / "audit.log", gauges.Lists(tmp_path, "somebody")
    assert (audit_log.lines(log), lists.first(0)) == ([], 0)
    log.write_text(EVENT % 1 + "\n" + (EVENT % 2)[:-9])
    began = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp()
    assert len(audit_log.lines(log)) == 1
    assert (lists.first(began), lists.first(began + 2)) == (began + 1.5, 0)
    log.write_text(EVENT % 1 + "\n" + EVENT % 2 + "\n")
    assert lists.first(began + 2) == began + 2.5
