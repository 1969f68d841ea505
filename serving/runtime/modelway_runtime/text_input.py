"""Texts become a model's inputs: the numbers of a tokenizer, cut off and padded. The `tokenizers` library counts."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .datatypes import Array
from .errors import LoadError, RequestError
from .tensors import Spec
from .texts import one_text

if TYPE_CHECKING:
    from .messages import ModelInfo

CONTENT_TYPE = "text/plain"
# Of one request: about a second of work.
_MAX_REQUEST_CHARS = 1 << 20


class TextInput:
    """The transform of a text body, see `negotiation.Transform`, and of a BYTES tensor of texts. Safe for threads.

    Args:
        inputs: All inputs of the model.
        declared: The entry in transforms.json; registry/transforms.py says what is in it.
        directory: Where its files lie.

    Raises:
        ImportError: The library is not installed.
        LoadError: The tokenizer is none.
    """

    def __init__(self, inputs: Sequence[Spec], declared: Mapping[str, Any], directory: Path) -> None:
        # Workers share the machine, and its threads would not survive a fork.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tokenizers: Any = importlib.import_module("tokenizers")
        self.name = str(declared.get("name", "text"))
        self.spec = Spec(self.name, "BYTES", (-1,))
        self._column = Spec(self.name, "BYTES", (-1, 1))
        self._inputs = {spec.name: spec for spec in inputs}
        self._ids = str(declared["ids"])
        self._mask, self._type_ids = declared.get("mask"), declared.get("type_ids")
        self._max_chars = int(declared.get("max_chars", 50_000))
        max_length = int(declared.get("max_length", 512))
        file = directory / str(declared.get("tokenizer", "tokenizer.json"))
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
            cut, padded = tokenizer.truncation or {}, tokenizer.padding or {}
            tokenizer.enable_truncation(max_length, direction=cut.get("direction", "right"))
            fixed = self._inputs[self._ids].shape[1]
            tokenizer.enable_padding(
                direction=padded.get("direction", "right"),
                length=None if fixed == -1 else fixed,
                pad_to_multiple_of=int(declared.get("pad_to_multiple_of", 8)) if fixed == -1 else None,
                **_padding(tokenizer, padded),
            )
        except Exception as error:  # the library raises plain Exception
            raise LoadError(f"the tokenizer cannot be used ({file.name}: {' '.join(str(error).split())[:200]})") from error
        self._tokenizer: Any = tokenizer

    def spec_for(self, num_dimensions: int) -> Spec:
        """The tensor of texts as a client may send it: [-1], or [-1, 1] as most clients do."""
        return self._column if num_dimensions == 2 else self.spec

    def __call__(self, model: ModelInfo, body: memoryview) -> tuple[Array, ...]:
        """The inputs of one row: the body is one text, whatever lines it has. Raises RequestError 4xx."""
        made = self.tokenize([one_text(self.name, body)])
        return tuple(made[spec.name] for spec in model.inputs)

    def sample(self, content_type: str) -> bytes:
        """A small body of the content type."""
        return b"a"

    def replaced(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays with those that the texts make instead of the texts. Raises RequestError 4xx."""
        others = {name: array for name, array in arrays.items() if name != self.name}
        if others:
            raise RequestError(400, f"send either the texts ({self.name}) or what a tokenizer makes of them ({', '.join(self._inputs)})")
        return self.tokenize(arrays[self.name].ravel().tolist())

    def tokenize(self, texts: Sequence[str]) -> dict[str, Array]:
        """Every input of the model, [texts, tokens]. Raises RequestError 413 for too long texts, 400 for one without tokens."""
        longest = max(map(len, texts))
        if longest > self._max_chars:
            raise RequestError(413, f"input {self.name}: a text has {longest} characters; at most {self._max_chars}")
        if sum(map(len, texts)) > max(_MAX_REQUEST_CHARS, self._max_chars):
            raise RequestError(413, f"input {self.name}: the texts of a request have at most {_MAX_REQUEST_CHARS} characters, send fewer")
        encodings = self._tokenizer.encode_batch(list(texts))
        if not all(any(encoding.attention_mask) for encoding in encodings):
            raise RequestError(400, f"input {self.name}: a text has no tokens")
        columns = {self._ids: [encoding.ids for encoding in encodings]}
        if self._mask is not None:
            columns[self._mask] = [encoding.attention_mask for encoding in encodings]
        if self._type_ids is not None:
            columns[self._type_ids] = [encoding.type_ids for encoding in encodings]
        return {name: np.array(rows, dtype=self._inputs[name].dtype) for name, rows in columns.items()}


def _padding(tokenizer: Any, declared: Mapping[str, Any]) -> dict[str, Any]:
    """What a text is padded with: what the tokenizer's file says, else the token that most vocabularies have for it."""
    if "pad_id" in declared:
        return {key: declared[key] for key in ("pad_id", "pad_type_id", "pad_token")}
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        number = tokenizer.token_to_id(token)
        if number is not None:
            return {"pad_id": number, "pad_token": token}
    return {}
