import signal
import subprocess
import sys

import pytest

from ideal_jax.landing import landing, one_at_a_time


def test_all_or_nothing(tmp_path):
    with landing(tmp_path / "a" / "folder") as partial:
        partial.mkdir()
        (partial / "file").write_text("x")
        assert not (tmp_path / "a" / "folder").exists()
    assert (tmp_path / "a" / "folder" / "file").read_text() == "x"
    with pytest.raises(ZeroDivisionError):
        half_written(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def half_written(path):
    with landing(path) as partial:
        partial.write_text("half")
        1 / 0  # noqa: B018


def test_a_file_is_replaced(tmp_path):
    for text in "12":
        with landing(tmp_path / "f") as partial:
            partial.write_text(text)
    assert (tmp_path / "f").read_text() == "2"


def test_a_killed_process_leaves_no_half_result_and_gives_up_its_turn(tmp_path):
    program = f"""
import pathlib, time
from ideal_jax.landing import landing, one_at_a_time
folder = pathlib.Path({str(tmp_path)!r})
with one_at_a_time(folder), landing(folder / "x") as partial:
    partial.mkdir()
    (partial / "half").write_text("x")
    print("now", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "x").exists()
    with one_at_a_time(tmp_path), landing(tmp_path / "x") as partial:
        assert not partial.exists()
        partial.write_text("whole")
    assert (tmp_path / "x").read_text() == "whole"
