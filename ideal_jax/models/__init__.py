"""Models: one Linen decoder."""

from ideal_jax.models.decoder import Decoder as Decoder
from ideal_jax.models.decoder import DecoderConfig as DecoderConfig
from ideal_jax.models.decoder import empty_cache as empty_cache
from ideal_jax.models.decoder import output_matrix as output_matrix
