"""Two raw domains, whose reference sets share an example with train."""

import pytest
from preparing import write_domain


@pytest.fixture
def root(tmp_path):
    write_domain(tmp_path / "raw", "b", [f"say {i}" for i in range(20)])
    write_domain(tmp_path / "raw", "a", [f"word {i} " + "long " * (i % 3) for i in range(20)])
    return tmp_path / "raw"
