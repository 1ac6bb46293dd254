"""IDEAL in JAX: decide how much of each domain goes into a supervised fine-tuning mixture.

Dimension alphabet, used in names (``tokens_BxT``), einsum strings and docstrings:

    B batch rows        T tokens        S examples in a packed row     V vocabulary
    D model width       F ffw width     N heads     K key/value heads  H head width
    L layers            n domains       R references                   P parameters
    I, O input and output width of a dense layer
"""

__version__ = "0.1.0"
