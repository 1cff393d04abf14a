"""When something will be used up."""

from netloom.ipam.trend import Trend


def test_of_what_grows_evenly() -> None:
    trend = Trend()
    for minute in range(11):
        trend.note(60.0 * minute, 100 + 2 * minute)
    assert trend.seconds_to(140) == 600.0
    assert trend.seconds_to(100) == 0.0


def test_of_what_does_not_grow_or_is_too_new_nothing_is_said() -> None:
    trend = Trend()
    assert trend.seconds_to(10) is None
    trend.note(0.0, 5)
    trend.note(60.0, 6)
    assert trend.seconds_to(10) is None
    trend.note(600.0, 5)
    assert trend.seconds_to(10) is None


def test_only_the_last_hour_counts_and_little_is_kept() -> None:
    trend = Trend()
    for second in range(0, 7200, 5):
        trend.note(float(second), second if second < 3000 else 3000)
    assert trend.seconds_to(4000) is None
    assert len(trend._samples) < 3600 / 30 + 5


def test_a_quiet_time_before_counts_for_no_more_than_the_hour() -> None:
    trend = Trend()
    trend.note(0.0, 0)
    trend.note(60.0, 10)
    quiet = 3 * 86400.0
    for minute in range(1, 11):
        trend.note(quiet + 60 * minute, 10 + 20 * minute)
    assert trend.seconds_to(1000) == 3600.0 * 790 / 200
