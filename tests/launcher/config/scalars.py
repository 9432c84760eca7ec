"""Scalars as people write them without quotes: what YAML 1.1 reads as a number, a truth value or a date, and words."""

from hypothesis import strategies as st

WORDS = """
0 7 -3 +1 0042 0712 08 1_000 10_000 0x10 0xFF 0b101 0o17 1.5 1.50 .5 1. -.5 1e-4 1E5 1e+3 1.5e3 3e8 6.02e23 .inf -.INF .NaN
12:00:00 1:30 190:20:30 1:30.5 2-12:00:00 2025-11-25 2001-12-14t21:59:43.10-05:00 yes no on off On OFF true false True
y n = << nan inf NULLS h100 été 名前 a-b 0x 1__0 0x_ 0b_ ._ 1_
"""
LONG = ("9" * 5000, "0x" + "f" * 5000, "1" + "0" * 400 + ".5")

scalars = st.one_of(
    st.sampled_from([*WORDS.split(), *LONG]),
    st.from_regex(r"[-+]?[0-9][0-9_]{0,8}", fullmatch=True),
    st.from_regex(r"[-+]?[0-9]{0,4}\.[0-9]{0,4}([eE][-+]?[0-9]{1,2})?", fullmatch=True).filter(lambda text: text.strip("+-.")),
    st.from_regex(r"[-+]?[0-9]{1,4}[eE][-+]?[0-9]{1,2}", fullmatch=True),
    st.from_regex(r"0[xob]?[0-9a-fA-F_]{1,6}", fullmatch=True),
    st.from_regex(r"[0-9]{1,3}(:[0-5]?[0-9]){1,3}(\.[0-9])?", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]", fullmatch=True),
    st.from_regex(r"[a-zA-Z0-9_./+]{1,12}", fullmatch=True).filter(lambda text: text.lower() not in ("null", "merge")),
)
"""None of them is null, for which there is no text."""
