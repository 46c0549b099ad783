"""Files appear whole, and every change of them is noticed."""

import random
from pathlib import Path

import pytest
import tensorflow as tf

from support import files
from support.errors import InputError


def test_json_comes_back_and_every_change_is_noticed(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"ü": "\x00"}, "c": True}
    path, rng = tmp_path / "new" / "some.json", random.Random(0)
    files.write_json(path, content)
    assert files.read_json(path) == content and list(path.parent.iterdir()) == [path]
    written, noticed = path.read_bytes(), 0
    for _ in range(500):
        changed = bytearray(written)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            assert files.read_json(path) == content  # white space changed
        except InputError as error:
            assert "some.json is damaged" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 300
    for damaged in (b"", b"{", b"[]", b"1", b"{}", b"\xff", b"[" * 100_000, written[:-2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged"):
            files.read_json(path)


def test_the_content_of_another_file_is_noticed(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert files.read_json(tmp_path / "a.json", ["a"]) == {"a": 1}
    with pytest.raises(InputError, match="a.json was written by another program, or another .*: "
                                         "it lacks b"):
        files.read_json(tmp_path / "a.json", ["a", "b"])


@pytest.mark.parametrize("place", [(files, "sync"), (Path, "replace")])
def test_a_file_that_cannot_be_written_is_unchanged(place, tmp_path, monkeypatch):
    path = tmp_path / "some.txt"
    files.write_whole(path, b"before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(OSError, match="cannot write .*some.txt: No space left on device"):
        files.write_whole(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_errors_of_tensorflow_are_named_and_others_are_left_alone():
    with pytest.raises(OSError, match="cannot write x: no space"), files.named("x"):
        raise tf.errors.ResourceExhaustedError(None, None, "no space")
    with pytest.raises(ZeroDivisionError), files.named("x"):
        1 / 0
