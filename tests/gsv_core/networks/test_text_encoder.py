import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from gsv_core.networks.text_encoder import TextEncoder

CHARACTERS = "你好吗，。a12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of toy width in transformers' own format, built from a seed."""
    path = tmp_path_factory.mktemp("bert-toy")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, "##2"]
    (path / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    (path / "vocab.txt").unlink()  # the published folder has tokenizer.json alone
    torch.manual_seed(0)
    network = BertForMaskedLM(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=12,
        )
    )
    network.save_pretrained(path, safe_serialization=False)  # pickled and with a language head, as the published one
    return path


def test_every_phoneme_gets_the_vector_of_its_character(folder):
    vectors = TextEncoder(folder).encode("你好，", [2, 3, 1])
    assert vectors.shape == (6, 16)
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[2], vectors[4])
    assert not torch.allclose(vectors[1], vectors[2])


def test_the_layer_is_the_third_from_the_end(folder):
    ids = TextEncoder(folder)._tokenizer(["你好"], return_tensors="pt")["input_ids"]
    hidden = BertModel.from_pretrained(folder).eval()(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(TextEncoder(folder).encode("你好", [1, 1]), hidden[2][0, 1:-1].detach())


def test_what_the_vocabulary_lacks_or_would_join_still_has_one_vector_each(folder):
    assert TextEncoder(folder).encode("A12 ☃", [1] * 5).shape == (5, 16)


def test_text_beyond_the_positions_is_read_in_pieces(folder):
    encoder = TextEncoder(folder)
    vectors = encoder.encode("你" * 23, [1] * 23)
    assert vectors.shape == (23, 16)
    torch.testing.assert_close(vectors[:10], encoder.encode("你" * 10, [1] * 10))


def test_no_text_has_no_vectors(folder):
    assert TextEncoder(folder).encode("", []).shape == (0, 16)


def test_wrong_counts_and_incomplete_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="3 characters"):
        TextEncoder(folder).encode("你好吗", [2, 2])
    with pytest.raises(ValueError, match="need config"):
        TextEncoder(tmp_path)


def test_a_text_has_the_vectors_it_has_alone_in_any_batch(folder):
    encoder = TextEncoder(folder)
    # The longest is read in two pieces.
    texts = [("你好", [1, 2]), ("", []), ("你好吗，你好吗，你好吗", [1] * 11), ("吗", [0]), ("a12。", [1, 1, 3, 1])]
    for (text, counts), batched in zip(texts, encoder.encode_batch(texts), strict=True):
        torch.testing.assert_close(batched, encoder.encode(text, counts), atol=1e-4, rtol=1e-4)
