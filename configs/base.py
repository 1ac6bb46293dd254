"""Every key of IDEAL-JAX with its default: the paper's rule on the built-in capabilities.

Each line says what the key means. [result] keys decide the outcome: a work directory belongs to
one setting of them, and a changed one is refused. [runtime] keys (where and how fast) may change
between restarts. Override any key on the command line: --config.mixture.step=0.3
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.seed = 0  # [result] base initialisation, plans, sampling

    c.data = d = ConfigDict()
    d.root = ""  # [result] folder with one sub-folder per domain; empty: the built-in capabilities
    d.domains = ""  # [result] comma-separated sub-folders, in order; empty: all of them
    d.tokenizer = "auto"  # [result] model.init's, else "byte"; "bpe:<size>", trained here; a folder
