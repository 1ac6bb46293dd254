"""The cache: what was made of data, shared by all runs of a user and found by content."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

# Raised when the same source, tokenizer and settings give something else than before.
_FORMAT = 2


def cache_folder(configured: str) -> Path:
    """The configured folder, or ``ideal-jax`` where the user's caches lie."""
    if configured:
        return Path(configured).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "ideal-jax"


def entry(cache: Path, kind: str, content: Any) -> Path:
    """The folder of what ``content``, a JSON value, decides."""
    text = json.dumps([_FORMAT, content], sort_keys=True)
    return cache / kind / hashlib.sha256(text.encode()).hexdigest()[:32]
