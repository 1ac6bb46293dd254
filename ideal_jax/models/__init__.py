"""Models: one Linen decoder, and the families of Hugging Face that it reads and writes."""

from ideal_jax.models.config import DecoderConfig as DecoderConfig
from ideal_jax.models.config import LoRA as LoRA
from ideal_jax.models.decoder import REMAT as REMAT
from ideal_jax.models.decoder import TAPS as TAPS
from ideal_jax.models.decoder import Decoder as Decoder
from ideal_jax.models.decoder import empty_cache as empty_cache
from ideal_jax.models.decoder import output_matrix as output_matrix
from ideal_jax.models.export import check_export as check_export
from ideal_jax.models.export import save_hf as save_hf
from ideal_jax.models.huggingface import check_tensors as check_tensors
from ideal_jax.models.huggingface import hf_folder as hf_folder
from ideal_jax.models.huggingface import hf_model as hf_model
from ideal_jax.models.huggingface import hf_remarks as hf_remarks
from ideal_jax.models.huggingface import load_hf as load_hf
from ideal_jax.models.huggingface import read_params as read_params
from ideal_jax.models.kernels import choose_attention as choose_attention
from ideal_jax.models.kernels import forward_mode as forward_mode
from ideal_jax.models.loss import decoder_loss as decoder_loss
from ideal_jax.models.loss import decoder_nll as decoder_nll
from ideal_jax.models.loss import example_losses as example_losses
from ideal_jax.models.parameters import abstract_params as abstract_params
from ideal_jax.models.parameters import random_params as random_params
from ideal_jax.models.peft import save_peft as save_peft
from ideal_jax.models.readings import Directions as Directions
