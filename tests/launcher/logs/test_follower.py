"""Lines of the ranks' output, printed while the files grow."""

import io
import os
import subprocess
import sys

from launcher.logs.follower import Followed, Follower


def test_a_follower_prints_files_that_appear_later(tmp_path):
    sink = io.StringIO()
    follower = Follower(lambda ranks: f"[{ranks[0]}]", fold_s=0.0)
    follower.follow([Followed(tmp_path / "a", 0, sink), Followed(tmp_path / "never", 1, sink)])
    (tmp_path / "a").write_bytes(b"one\ntw")
    with (tmp_path / "a").open("ab") as file:
        file.write(b"o\nthree")
    follower.stop()
    assert sink.getvalue() == "[0] one\n[0] two\n[0] three\n"


def test_of_a_progress_bar_the_last_state_is_printed(tmp_path):
    (tmp_path / "a").write_bytes(b"\r  0%|\r 50%|#\r100%|##\nwindows\r\n\r\n")
    sink = io.StringIO()
    follower = Follower(lambda ranks: f"[{ranks[0]}]", fold_s=0.0)
    follower.follow([Followed(tmp_path / "a", 0, sink)])
    follower.stop()
    assert sink.getvalue() == "[0] 100%|##\n[0] windows\n[0] \n"


def test_a_follower_stops_while_a_file_still_grows(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        writer = subprocess.Popen([sys.executable, "-c", "while True: print('x' * 1000)"], stdout=file)
    try:
        sink = io.StringIO()
        follower = Follower(str, fold_s=0.0)
        follower.follow([Followed(tmp_path / "a", 0, sink)])
        while not sink.getvalue():
            os.sched_yield()
        follower.stop()
    finally:
        writer.kill()
        writer.wait()


def test_a_sink_that_fails_does_not_stop_the_others(tmp_path):
    (tmp_path / "a").write_text("one\n")
    closed, sink = io.StringIO(), io.StringIO()
    closed.close()
    follower = Follower(lambda ranks: f"[{ranks[0]}]", fold_s=0.0)
    follower.follow([Followed(tmp_path / "a", 0, closed), Followed(tmp_path / "a", 1, sink)])
    follower.stop()
    assert sink.getvalue() == "[1] one\n"
