"""Characters to text vectors: a BERT's view of every character, handed to the phonemes it is spoken with.

BERT (Devlin et al. 2019, arXiv:1810.04805), for the published bases Chinese RoBERTa-wwm-ext-large; the third layer from
the end is what they were trained with. Shapes: P phonemes, W width of the vectors.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gsv_core.networks.pretrained import check_complete, folder_digest

LAYER_FROM_END = 3


class TextEncoder:
    """A BERT in transformers' own folder format. `digest` changes whenever the vectors would."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Raises: ValueError when the folder is incomplete or holds something else."""
        from transformers import BertModel, BertTokenizerFast

        self.digest = folder_digest(folder)
        self.name = f"bert:{folder.name}"
        network, loading = BertModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, add_pooling_layer=False
        )
        check_complete(folder, loading)
        if network.config.num_hidden_layers < LAYER_FROM_END:
            raise ValueError(
                f"{folder}: expected {LAYER_FROM_END} layers or more, got {network.config.num_hidden_layers}"
            )
        self.width: int = network.config.hidden_size
        self._network = network.eval().to(device)
        self._tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def encode(self, text: str, phonemes_per_character: Sequence[int]) -> Tensor:
        """One vector per phoneme of `text`: -> (P, W) float32, P the sum of `phonemes_per_character`."""
        if len(text) != len(phonemes_per_character):
            raise ValueError(f"{len(text)} characters, but counts of phonemes for {len(phonemes_per_character)}")
        # The network reads no more positions than it was trained with; two of them are the marks around the text.
        longest = self._network.config.max_position_embeddings - 2
        pieces = [self._characters(text[start : start + longest]) for start in range(0, len(text), longest)]
        vectors = torch.cat(pieces) if pieces else torch.zeros(0, self.width)
        return vectors.repeat_interleave(torch.tensor(phonemes_per_character, dtype=torch.long), dim=0)

    def _characters(self, text: str) -> Tensor:
        tokenizer = self._tokenizer
        # Looked up one by one: word pieces would join digits and letters and lose the way back to characters.
        characters = tokenizer.convert_tokens_to_ids([character.lower() for character in text])
        ids = torch.tensor([[tokenizer.cls_token_id, *characters, tokenizer.sep_token_id]], device=self._network.device)
        hidden = self._network(ids, output_hidden_states=True).hidden_states[-LAYER_FROM_END]
        return hidden[0, 1:-1].float().cpu()
