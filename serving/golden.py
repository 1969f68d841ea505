"""The golden set on the wire: ask a node for it, and say how far its answer is off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from registry.bundle import canonical_json
from registry.errors import Corrupt
from registry.signature import NUMPY_DTYPES, Signature
from serving.runtime.modelway_runtime.golden import Comparison, GoldenSet, compare

PROBE_HEADERS: dict[str, str] = {"content-type": "application/json", "x-modelway-protocol": "v2-infer"}

_PART_VALUES = 500_000  # 4 MB at most
_JSON_DATATYPES = ("BYTES", "BF16")  # numpy does not have them as the wire does


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A version's golden set with what it takes to ask for it and to judge the answer.

    Attributes:
        tolerance: Output name -> {"rtol", "atol"} for the variant that is asked.
    """

    signature: Signature
    data: GoldenSet
    tolerance: Mapping[str, Mapping[str, float]]

    @classmethod
    def from_bytes(cls, signature: Signature, npz: bytes, tolerance: Mapping[str, Mapping[str, float]]) -> Golden:
        """Of the content of `golden.npz`. Raises Corrupt if it is none, or does not fit the signature."""
        try:
            data = GoldenSet.load(npz)
        except Exception as error:  # numpy raises many kinds for a broken file
            raise Corrupt(f"unreadable golden set ({error})", "Export the version again.") from error
        for specs, arrays in ((signature.inputs, data.inputs), (signature.outputs, data.outputs)):
            names = {spec.name for spec in specs}
            if names != set(arrays):
                raise Corrupt(
                    f"golden set does not fit the signature (has {sorted(arrays)}, not {sorted(names)})", "Export the version again."
                )
        return cls(signature=signature, data=data, tolerance=tolerance)

    def parts(self, max_values: int = _PART_VALUES) -> Iterator[Golden]:
        """The set cut by rows into sets of at most `max_values` input values, or of one row, so that each fits into a request."""
        values_per_row = sum(array[0].size for array in self.data.inputs.values())
        rows_per_part = max(1, max_values // max(1, values_per_row))
        for start in range(0, self.data.num_rows, rows_per_part):
            rows = slice(start, start + rows_per_part)
            inputs, outputs = ({name: array[rows] for name, array in side.items()} for side in (self.data.inputs, self.data.outputs))
            yield replace(self, data=GoldenSet(inputs, outputs))

    def request(self, *, max_rows: int | None = None) -> bytes:
        """The golden inputs as an Open Inference Protocol v2 request in JSON; send it with `PROBE_HEADERS`."""
        inputs = []
        for spec in self.signature.inputs:
            array = np.asarray(self.data.inputs[spec.name][:max_rows], dtype=NUMPY_DTYPES[spec.datatype])
            inputs.append({"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": array.ravel().tolist()})
        return canonical_json({"id": "golden", "inputs": inputs}).encode()

    def binary_request(self) -> tuple[Mapping[str, str], bytes]:
        """Headers and body of the same request in the protocol's binary extension: a third of the bytes. Answered in JSON.

        Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
        """
        inputs, tensors = [], []
        for spec in self.signature.inputs:
            array = np.asarray(self.data.inputs[spec.name], dtype=NUMPY_DTYPES[spec.datatype])
            tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
            if spec.datatype in _JSON_DATATYPES:
                inputs.append(tensor | {"data": array.ravel().tolist()})
            else:
                tensors.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
                inputs.append(tensor | {"parameters": {"binary_data_size": len(tensors[-1])}})
        outputs = [{"name": spec.name, "parameters": {"binary_data": False}} for spec in self.signature.outputs]
        text = canonical_json({"id": "golden", "inputs": inputs, "outputs": outputs}).encode()
        headers = PROBE_HEADERS | {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
        return headers, b"".join([text, *tensors])

    def judge(self, status: int, body: bytes, *, max_rows: int | None = None) -> Comparison:
        """Hold a node's answer to `request` against the golden outputs. Never raises: a bad answer is a problem."""
        if status != 200:
            return Comparison(float("inf"), (f"answered {status}: {body[:300].decode(errors='replace')}",))
        try:
            got = {str(output["name"]): _array(output) for output in json.loads(body)["outputs"]}
        except (ValueError, KeyError, TypeError) as error:
            return Comparison(float("inf"), (f"answer is not of the Open Inference Protocol ({type(error).__name__}: {error})",))
        return compare({name: array[:max_rows] for name, array in self.data.outputs.items()}, got, self.tolerance)


def _array(output: Mapping[str, Any]) -> Any:
    return np.asarray(output["data"], dtype=NUMPY_DTYPES[str(output["datatype"])]).reshape(output["shape"])
