import gzip
import json

import pytest

from ideal_jax.data.sources import find_domains, read_domain
from ideal_jax.errors import UserError

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_three_formats_are_one(tmp_path, name):
    path = write(
        tmp_path / "math" / name,
        {"id": "x", "source": "ignored", **GOOD},
        "",
        {"prompt": "q", "response": "a"},
        {"id": 7, "instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": "more", "output": "a"},
    )
    records = list(read_domain(path))
    assert [r.id for r in records] == ["x", f"math/{name}:3", "7", f"math/{name}:5"]
    assert [r.where for r in records] == [f"{path}:{n}" for n in (1, 3, 4, 5)]
    assert [r.messages for r in records[:3]] == [GOOD["messages"]] * 3
    assert records[3].prompt == [{"role": "user", "content": "q\n\nmore"}]
    assert records[3].answer == "a"


def turn(role="assistant", content="a"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", ":2: not valid JSON"),
        ("[1]", ":2: expected a JSON object, found list"),
        ({"question": "a"}, ':2: needs "messages"'),
        ({"messages": "a"}, ':2: "messages" must be a list, found str'),
        ({"messages": ["a"]}, "must be an object, found str"),
        ({"messages": [turn("robot")]}, "must be one of system, user, assistant, developer, tool"),
        ({"messages": [turn(content=None)]}, '"content" must be a string, found nothing'),
        ({"messages": [turn(content=3)]}, '"content" must be a string, found int'),
        ({"messages": []}, ":2: has no assistant turn"),
        ({"messages": [turn("user")]}, ":2: has no assistant turn"),
        ({"id": [], **GOOD}, '"id" must be a string, found list'),
        ({"prompt": "q", "response": 3}, '"response" must be a string, found int'),
        ({"prompt": "\ud800", "response": "a"}, "not valid Unicode"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", GOOD, line)
    with pytest.raises(UserError) as error:
        list(read_domain(path))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"empty.jsonl holds no examples"):
        list(read_domain(write(tmp_path / "empty.jsonl")))
    path = tmp_path / "cut.jsonl.gz"
    for broken in (b"plain", gzip.compress(b"{}" * 99)[:-9]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"cut.jsonl.gz:1: not readable as gzip"):
            list(read_domain(path))


@pytest.fixture
def root(tmp_path):
    for name in ("math", "code"):
        write(tmp_path / name / "train.jsonl", GOOD)
        write(tmp_path / name / "reference.jsonl.gz", GOOD)
    write(tmp_path / "math" / "test.jsonl", GOOD)
    write(tmp_path / "notes" / "readme.txt")
    return tmp_path


def test_domains_are_found(root):
    found = find_domains(root)
    assert list(found) == ["code", "math"]
    assert found["code"].test is None
    (root / "code" / "reference.jsonl.gz").unlink()
    assert find_domains(root)["code"].reference is None
    assert found["math"].test.spec == str(root / "math" / "test.jsonl")
    assert found["math"].reference.spec == str(root / "math" / "reference.jsonl.gz")
    assert list(find_domains(root, ("math", "code"))) == ["math", "code"]


def test_missing_domains_are_named(root):
    with pytest.raises(UserError, match=r"data.root .*/nowhere does not exist"):
        find_domains(root / "nowhere")
    with pytest.raises(UserError, match="holds no domain"):
        find_domains(root / "notes")
    with pytest.raises(UserError, match=r'no domain "maths" \(did you mean math\?\).*code, math'):
        find_domains(root, ("maths",))
    with pytest.raises(UserError, match='names "math" twice'):
        find_domains(root, ("math", "math"))
    write(root / "math" / "train.jsonl.gz", GOOD)
    with pytest.raises(UserError, match="both exist"):
        find_domains(root, ("math",))


def test_whoever_asks_gets_every_bad_record_and_the_good_ones(tmp_path):
    path = tmp_path / "train.jsonl"
    good = json.dumps({"prompt": "p", "response": "r"})
    path.write_text(f'{good}\n[1]\n{good}\n{{"messages": 3}}\n')
    refused = []
    records = list(read_domain(path, refused.append))
    assert len(records) == 2
    assert [str(error).split(": ")[0] for error in refused] == [f"{path}:2", f"{path}:4"]
