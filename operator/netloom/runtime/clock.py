"""What time it is, to whom.

- `boottime` measures how long something lasts. Nobody can set it, and it counts on while the machine sleeps.
- The **API server's clock** dates what the API server judges or shows. Every answer tells it by its Date header, to the
  second; between answers `boottime` carries it on, so setting a clock here changes nothing.
- The **wall clock** of this machine is believed only until the first answer.
"""

import datetime as dt
import email.utils
import time
from collections.abc import Callable

TOLERANCE = dt.timedelta(seconds=2)
"""So much an answer may be behind the clock that is kept: a Date has no fractions, and answers take their time."""


def boottime() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> dt.datetime:
    """What this machine takes for the time."""
    return dt.datetime.now(dt.UTC)


class ServerClock:
    """The clock of the API server that answered last."""

    def __init__(self, steady: Callable[[], float] = boottime, wall: Callable[[], dt.datetime] = wall) -> None:
        self._steady = steady
        self._wall = wall
        self._text = ""
        self._at: tuple[dt.datetime, float] | None = None
        """A moment on its clock, and the same one on ours."""

    def now(self) -> dt.datetime:
        """The time there, to a second or two; before the first answer, the time here."""
        if self._at is None:
            return self._wall()
        then, since = self._at
        return then + dt.timedelta(seconds=self._steady() - since)

    def heard(self, date: str | None) -> None:
        """An answer came with this Date header. What is no date is passed over."""
        if not date or date == self._text:
            return  # thousands of answers in a second tell the same
        told = http_date(date)
        if told is None:
            return
        self._text = date
        if self._at is None or not told <= self.now() < told + TOLERANCE:
            self._at = told, self._steady()


def timestamp(moment: dt.datetime) -> str:
    """As objects have it (metav1.Time)."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def http_date(text: str) -> dt.datetime | None:
    """A date of a header (RFC 9110, 5.6.7); None for what is none."""
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return date.replace(tzinfo=date.tzinfo or dt.UTC)
