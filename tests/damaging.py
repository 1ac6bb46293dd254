"""What may happen to a file."""

import json
import pathlib

SMALLEST = pathlib.Path(__file__).parent / "runs" / "smallest.py"


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for i in range(max(0, middle - 32), min(len(content), middle + 32)):
        content[i] ^= 0xFF
    path.write_bytes(content)


def another_type(path):
    path.write_text("[1, 2]")


def without_a_key(path):
    value = json.loads(path.read_text())
    del value[sorted(value)[0]]
    path.write_text(json.dumps(value))


def without_all_keys(path):
    path.write_text("{}")


def another_digit(path):
    text = path.read_text()
    at = next(i for i in range(len(text) // 2, len(text)) if text[i] in "12345678")
    path.write_text(text[:at] + str(int(text[at]) + 1) + text[at + 1 :])


BYTES = (halve, empty, flip)
JSON = (*BYTES, another_type, without_a_key, without_all_keys)
