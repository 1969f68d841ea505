"""The tuning of a variant: stored with its version, and counting only for the export that was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry.errors import Corrupt, UsageError
from registry.names import ModelVersion
from registry.tuning import Tuning, WorkerLayout, document_name, read_tuning, store_tuning
from support.memory_registry import MemoryRegistry

VERSION = ModelVersion("digits", 1)
LAYOUT = WorkerLayout(num_workers=2, num_threads=1, batch_size=16)
TUNING = Tuning(version=VERSION, variant="onnx-fp32", bundle_sha256="a" * 64, layout=LAYOUT, measured={"limit_p99_ms": 20.0})


@pytest.fixture
def registry() -> MemoryRegistry:
    registry = MemoryRegistry()
    registry.register("digits")
    return registry


def test_a_tuning_comes_back_as_it_was(registry: MemoryRegistry) -> None:
    assert read_tuning(registry, VERSION, "onnx-fp32", "a" * 64) is None
    store_tuning(registry, TUNING)
    assert read_tuning(registry, VERSION, "onnx-fp32", "a" * 64) == TUNING
    assert read_tuning(registry, VERSION, "torchscript-fp32", "a" * 64) is None


def test_a_tuning_of_an_earlier_export_does_not_count(registry: MemoryRegistry) -> None:
    store_tuning(registry, TUNING)
    assert read_tuning(registry, VERSION, "onnx-fp32", "b" * 64) is None


def test_a_tuning_of_another_variant_is_refused(registry: MemoryRegistry) -> None:
    registry.attach_document(VERSION, document_name("onnx-fp32"), replace(TUNING, variant="onnx-fp16").to_bytes())
    with pytest.raises(Corrupt, match=r"is of another \(digits/1, onnx-fp16\)"):
        read_tuning(registry, VERSION, "onnx-fp32", "a" * 64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        TUNING.to_bytes().replace(b'"batch_size":16', b'"batch_size":0'),
        TUNING.to_bytes().replace(b'"batch_size":16', b'"batch_size":"many"'),
        TUNING.to_bytes().replace(b'"num_workers"', b'"num_cats"'),
    ],
)
def test_what_is_no_tuning_is_corrupt(content: bytes) -> None:
    with pytest.raises(Corrupt, match=r"unreadable tuning .* Run `modelway tune` again"):
        Tuning.from_bytes(content)


def test_a_layout_says_what_it_is() -> None:
    assert str(LAYOUT) == "2 worker(s) x 1 thread(s), batch 16"
    assert WorkerLayout(num_workers=2, num_threads=3, batch_size=1).num_cores == 6
    with pytest.raises(UsageError, match="must be 1 or more"):
        WorkerLayout(num_workers=0, num_threads=1, batch_size=1)
