import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideal_jax.data.tokenizers import SPECIALS, byte_tokenizer, digest, load_tokenizer, train_bpe
from ideal_jax.errors import UserError

TEXTS = ["the cat sat on the mat", "def f(x):\n    return x + 1\n", "Grüße, 世界 🙂"] * 5
BYTE = byte_tokenizer()
BPE = train_bpe(TEXTS, 300)


@pytest.mark.parametrize("tokenizer", [BYTE, BPE])
def test_specials_come_first(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 4)


def test_byte_tokenizer_has_one_token_a_byte():
    assert len(BYTE) == 5 + 256
    text = "aé世🙂"
    assert len(BYTE(text)["input_ids"]) == len(text.encode())


def test_bpe_merges_and_respects_its_size():
    assert 5 + 256 < len(BPE) <= 300
    assert len(BPE("the cat")["input_ids"]) < len("the cat")


@pytest.mark.parametrize("tokenizer", [BYTE, BPE])
@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([" a , b .", "  "]))
def test_no_text_is_changed_by_a_round_trip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(range(5))


@pytest.mark.parametrize("tokenizer", [BYTE, BPE])
def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert digest(loaded) == digest(tokenizer)
    assert loaded.eos_token_id == 4
    assert loaded.decode(loaded(" a , b .")["input_ids"]) == " a , b ."


def test_bpe_is_the_same_in_another_process():
    program = (
        "from ideal_jax.data.tokenizers import digest, train_bpe\n"
        f"print(digest(train_bpe({TEXTS!r}, 300)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert out.stdout.decode().strip() == digest(BPE)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="at least 261"):
        train_bpe(TEXTS, 100)
    with pytest.raises(UserError, match=r'no/such" does not exist'):
        load_tokenizer("no/such")
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)
