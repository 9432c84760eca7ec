import pytest

from launcher.top.keyboard import Keyboard, keys_in


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"q", ["quit"]),
        (b"\x1b[B\x1b[6~k", ["down", "page down", "up"]),
        (b"\x1bOAx\xff G", ["up", "page down", "end"]),
        (b"", []),
    ],
)
def test_keys_are_read_from_what_a_terminal_sends(sent, keys):
    assert [*keys_in(sent)] == keys


def test_without_a_terminal_no_key_is_read(tmp_path):
    (tmp_path / "keys").write_text("q")
    with (tmp_path / "keys").open() as stream:
        for keyboard in (Keyboard(stream), Keyboard(None)):
            with keyboard.listening():
                assert keyboard.pressed(0.01) == []
