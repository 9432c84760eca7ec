import pytest

from launcher.live import quantities


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.03141, "0.0314"),
        (3.14159, "3.14"),
        (99.2, "99.2"),
        (99.96, "100"),
        (198.4, "198"),
        (999.4, "999"),
        (999.6, "1k"),
        (12_412.0, "12.4k"),
        (999_600.0, "1M"),
        (1.5e12, "1.5T"),
    ],
)
def test_a_rate_has_three_digits(value, text):
    assert quantities.rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (-3.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (140.0, "2 min 20 s"),
        (511.0, "8 min"),
        (3600.0, "1 h"),
        (7500.0, "2 h 5 min"),
        (11 * 3600.0 + 300, "11 h"),
        (3 * 86400.0 + 4 * 3600, "3 d 4 h"),
        (40 * 86400.0 + 4 * 3600, "40 d"),
    ],
)
def test_a_long_duration_has_the_units_that_matter(value, text):
    assert quantities.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0004, "0.4 ms"), (0.3225, "322 ms"), (0.9996, "1 s"), (12.345, "12.3 s"), (75, "1 min 15 s")],
)
def test_a_step_has_milliseconds_or_seconds(value, text):
    assert quantities.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(2.31412, "2.314"), (3e-4, "0.0003"), (1.23456e-7, "1.235e-07"), (12.0, "12")])
def test_a_scalar_has_four_digits(value, text):
    assert quantities.scalar(value) == text
