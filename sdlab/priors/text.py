"""The text side of a diffusers model: tokenizer and text encoder, and remarks for the user about a prompt."""

from __future__ import annotations

import string
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdlab.priors.wordlist import WordList

KEPT_TEXTS = 256
T5_TOKENS = 77  # T5 itself has no limit; DeepFloyd IF was trained with 77


class TextEncoder:
    """Text -> hidden [1, L, D] on `device`, as in the Stable Diffusion and DeepFloyd IF pipelines.

    The most recent texts are cached. `model` may be on another device. Safe to call from any thread.
    """

    def __init__(self, tokenizer: Any, model: nn.Module, known: WordList | None, device: torch.device) -> None:
        self.model = model
        self._device = device
        self._known = known
        self._tokenizer = tokenizer
        config: Any = model.config
        is_t5 = config.model_type == "t5"
        # with CLIP, the padding is attended to as well: the networks were trained that way
        self._masks_padding = is_t5 or getattr(config, "use_attention_mask", False)
        limit = T5_TOKENS if is_t5 else config.max_position_embeddings
        self._n_tokens = min(tokenizer.model_max_length, limit)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()  # also guards the tokenizer, which fails when two threads set its padding

    @torch.no_grad()
    def embed(self, text: str) -> Float[Tensor, "1 L D"]:
        """Return the hidden states of `text`, cut or padded to the model's number of tokens."""
        with self._lock:
            if text not in self._kept:
                self._kept[text] = self._encode(text)
            self._kept.move_to_end(text)
            while len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
            return self._kept[text]

    def _encode(self, text: str) -> Tensor:
        tokens = self._tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=self._n_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        mask = tokens.attention_mask if self._masks_padding else None
        return self.model(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state.float().to(self._device)

    def remark(self, text: str, is_prompt: bool = True) -> str:
        """Return what the user should know about `text`: words cut off or unknown, or no object; "" if nothing.

        A missing object is only remarked on in a prompt (`is_prompt`) and with a word list.
        """
        remarks = self._unread(text)
        if self._known is None:
            return "; ".join(remarks)
        if is_prompt and text.strip() and not self._known.names_object(text):
            remarks.append("the prompt names no object that the model knows, so the result is left to chance")
        return f"{'; '.join(remarks)}. The model knows these words:\n{self._known.shown()}" if remarks else ""

    def _unread(self, text: str) -> list[str]:
        with self._lock:
            tokens = self._tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )
        ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
        room = self._n_tokens - self._tokenizer.num_special_tokens_to_add()
        remarks = []
        if len(ids) > room:
            start = offsets[room][0]
            while start > 0 and not text[start - 1].isspace():
                start -= 1  # quote a word that is cut in the middle as a whole
            remarks.append(f"the model reads only the first {room} tokens; cut off: {listed(text[start:].split())}")
        unknown = self._unknown_token()
        words = [text[a:b] for i, (a, b) in zip(ids[:room], offsets, strict=False) if i == unknown]
        words = [w for w in dict.fromkeys(words) if w.strip(string.punctuation)]
        if words:
            remarks.append(f"the model does not know these words: {listed(words, self._known)}")
        return remarks

    def _unknown_token(self) -> int | None:
        k = self._tokenizer
        # CLIP's tokenizer can spell any text, and reuses the number of its end token here
        return None if k.unk_token_id in (k.eos_token_id, k.pad_token_id) else k.unk_token_id


def listed(words: Sequence[str], known: WordList | None = None, show: int = 8) -> str:
    """Return the first `show` words in quotes, each with a similar known word if there is one."""
    named = []
    for word in words[:show]:
        near = known.nearest(word) if known else ""
        named.append(f"{word[:40]!r} (did you mean {near!r}?)" if near else repr(word[:40]))
    more = f" and {len(words) - show} more" if len(words) > show else ""
    return ", ".join(named) + more
