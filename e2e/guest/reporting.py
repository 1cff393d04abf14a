"""How the tests in the guest tell the other side what came of them: a line of JSON each on the console."""

import json

import pytest

RESULT = "@@ result "


def result_line(report: pytest.TestReport) -> str:
    """Of a test's call, or of what went wrong around it; empty for what is no result."""
    if report.when != "call" and report.passed:
        return ""
    text = f"{report.longreprtext}\n{report.capstdout}"[-8000:] if report.failed else ""
    name = report.nodeid.partition("::")[2]
    words = {"test": name, "outcome": report.outcome, "seconds": round(report.duration, 1)}
    return RESULT + json.dumps(words | {"text": text})
