"""Characters to text vectors: a BERT's view of every character, handed to the phonemes it is spoken with.

BERT (Devlin et al. 2019, arXiv:1810.04805), for the published bases Chinese RoBERTa-wwm-ext-large; the third layer from
the end is what they were trained with. Shapes: P phonemes, W width of the vectors.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gsv_core.networks.content_encoder import buckets
from gsv_core.networks.pretrained import check_complete, folder_digest, weights_file

LAYER_FROM_END = 3
_MOST_CHARACTERS = 4_096
"""Of one padded batch."""


class TextEncoder:
    """A BERT in transformers' own folder format, loaded when it is first needed: nothing but Mandarin needs it."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Raises: ValueError when the folder is incomplete."""
        weights_file(folder)
        self.name = f"bert:{folder.name}"
        self._folder, self._device = folder, device

    @cached_property
    def digest(self) -> str:
        """64 hex digits that change whenever the vectors would."""
        return folder_digest(self._folder)

    @cached_property
    def width(self) -> int:
        """Of the vectors."""
        from transformers import BertConfig

        return int(BertConfig.from_pretrained(self._folder, local_files_only=True).hidden_size)

    def ready(self) -> Self:
        """Load it now, so that what is wrong with it is said now.

        Raises:
            ValueError: the files hold something else.
        """
        _ = self._network, self._tokenizer
        return self

    @cached_property
    def _network(self) -> Any:
        from transformers import BertModel

        network, loading = BertModel.from_pretrained(
            self._folder, local_files_only=True, output_loading_info=True, add_pooling_layer=False
        )
        check_complete(self._folder, loading)
        if network.config.num_hidden_layers < LAYER_FROM_END:
            raise ValueError(
                f"{self._folder}: expected {LAYER_FROM_END} layers or more, got {network.config.num_hidden_layers}"
            )
        return network.eval().to(self._device)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import BertTokenizerFast

        return BertTokenizerFast.from_pretrained(self._folder, local_files_only=True)

    @torch.inference_mode()
    def encode(self, text: str, phonemes_per_character: Sequence[int]) -> Tensor:
        """One vector per phoneme of `text`: -> (P, W) float32, P the sum of `phonemes_per_character`."""
        pieces = [self._vectors([self._ids(piece)])[0] for piece in self._pieces(text, phonemes_per_character)]
        return self._per_phoneme(pieces, phonemes_per_character)

    @torch.inference_mode()
    def encode_batch(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[Tensor]:
        """`encode` of each (text, phonemes per character), texts of similar length together; equal within 1e-4."""
        pieces = [self._pieces(text, counts) for text, counts in texts]
        ids = [self._ids(piece) for row in pieces for piece in row]
        vectors = [torch.empty(0)] * len(ids)
        for group in buckets([len(row) for row in ids], _MOST_CHARACTERS):
            for number, found in zip(group, self._vectors([ids[number] for number in group]), strict=True):
                vectors[number] = found
        rest = iter(vectors)
        return [
            self._per_phoneme([next(rest) for _ in row], counts) for row, (_, counts) in zip(pieces, texts, strict=True)
        ]

    def to(self, device: str) -> Self:
        """Compute on `device`; what it gives still comes back to the CPU."""
        self._device = device
        if "_network" in vars(self):
            self._network.to(device)
        return self

    def _pieces(self, text: str, phonemes_per_character: Sequence[int]) -> list[str]:
        if len(text) != len(phonemes_per_character):
            raise ValueError(f"{len(text)} characters, but counts of phonemes for {len(phonemes_per_character)}")
        # The network reads no more positions than it was trained with; two of them are the marks around the text.
        longest = self._network.config.max_position_embeddings - 2
        return [text[start : start + longest] for start in range(0, len(text), longest)]

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        # Looked up one by one: word pieces would join digits and letters and lose the way back to characters.
        characters = tokenizer.convert_tokens_to_ids([character.lower() for character in text])
        return [tokenizer.cls_token_id, *characters, tokenizer.sep_token_id]

    def _vectors(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """A vector per character of each row of ids, without the marks around it."""
        device = self._network.device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        # Alone there is nothing to mask, and the network is quicker without.
        mask = None
        if len(rows) > 1:
            lengths = torch.tensor([len(row) for row in rows], device=device)
            mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        hidden = self._network(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-LAYER_FROM_END]
        return [vectors[1 : len(row) - 1].float().cpu() for vectors, row in zip(hidden, rows, strict=True)]

    def _per_phoneme(self, pieces: Sequence[Tensor], phonemes_per_character: Sequence[int]) -> Tensor:
        vectors = torch.cat(list(pieces)) if pieces else torch.zeros(0, self.width)
        return vectors.repeat_interleave(torch.tensor(phonemes_per_character, dtype=torch.long), dim=0)
