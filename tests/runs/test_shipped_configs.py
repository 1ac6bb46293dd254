"""Every shipped config takes any model."""

import pathlib

import chatml_model
import pytest

from ideal_jax import config as config_lib
from ideal_jax.data.tokenizers import digest, load_tokenizer
from ideal_jax.runs.session import open_session

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of Hugging Face, and two domains."""
    place = tmp_path_factory.mktemp("given")
    chatml_model.save_chatml_model(place / "model", 320)
    chatml_model.write_domains(place / "domains", {"a": "yes", "b": "no"}, (12, 4, 2))
    return place


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_opens_with_a_model_of_hugging_face(file, given, tmp_path):
    config = config_lib.load(file)
    config.model.init = str(given / "model")
    config.data.root, config.data.domains = str(given / "domains"), ""
    config.mixture.counts = ""
    config.mesh.update(replica=1, fsdp=-1, tensor=1, slices=1)
    session = open_session(config, tmp_path / "w", "test")
    assert (session.model.cfg.vocab_size, session.model.cfg.d_model) == (320, 32)
    assert session.model.cfg.tie_embeddings
    assert digest(session.data.tokenizer) == digest(load_tokenizer(given / "model"))
