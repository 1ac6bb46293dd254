"""The example in docs/influence.md runs and says what it claims."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "influence.md"


def test_the_documented_model_is_measured():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    good, bad = names["matrix"].alpha
    error = names["matrix"].alpha_stderr[0]
    assert good < -1.96 * error
    assert abs(good + bad) < 1e-9
