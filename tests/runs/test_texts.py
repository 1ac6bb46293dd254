"""A run whose domains come from an entry of the config and from texts."""

import json

from ideal_jax import cli

CONFIG = """
from ideal_jax.config import load
def get_config():
    c = load({smallest!r})
    c.data.domains = ""
    c.data.row_length = 32
    c.data.overlong = "drop"
    c.data.test_examples = 4
    for name in ("talks", "texts"):
        paths = [f"{folder}/{{name}}.jsonl", f"{folder}/r{{name}}.jsonl"]
        c.data.sources[name] = dict(zip(("train", "reference"), paths))
    c.mixture.rounds = 0
    return c
"""


def test_texts_and_conversations_in_one_run(runs, compiled, tmp_path, capsys):
    for prefix, first in (("", 0), ("r", 90)):
        numbers = range(first, first + 16)
        talks = [{"prompt": f"say {i}", "response": "so" * (i % 4) * 4} for i in numbers]
        texts = [{"text": f"number {i}, " * (i % 5 + 1)} for i in numbers]
        for name, rows in (("talks", talks), ("texts", texts)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{prefix}{name}.jsonl").write_text(lines)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(smallest=str(runs.config), folder=tmp_path))
    assert cli.main(["run", f"--config={config}", f"--workdir={tmp_path / 'w'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    dataset = json.loads((tmp_path / "w" / "data" / "dataset.json").read_text())
    dropped = dataset["left_out"]["talks"]["dropped"]
    assert dropped > 0
    assert f"data: talks: examples left out or cut: {dropped} dropped" in said
    evaluation = json.loads((tmp_path / "w" / "rounds" / "00" / "evaluation.json").read_text())
    assert [task["domain"] for task in evaluation["tasks"]] == ["talks"]
    assert evaluation["overall"] == evaluation["tasks"][0]["value"]
    assert set(evaluation["test_loss"]) == {"talks", "texts"}
    train = json.loads((tmp_path / "w" / "rounds" / "00" / "train.json").read_text())
    assert 0.5 < train["filled"] <= 1
    assert f"in {train['rows']} rows, {train['filled']:.1%} filled" in said
