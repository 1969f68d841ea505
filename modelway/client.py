"""The Python client of the gateway: arrays in, arrays out, over the Open Inference Protocol v2."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from registry.errors import ModelwayError, NotFound, TimedOut, Unavailable, UsageError
from registry.names import check_model_name
from registry.signature import NUMPY_DTYPES, PROTOCOL_DTYPES, Signature

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Inference:
    """An answer and where it came from.

    Attributes:
        outputs: Output name -> array, batch first.
        version: The model version that answered.
        release: The release that routed the request to it.
        request_id: What `trace` finds the request by.
    """

    outputs: Mapping[str, Array]
    version: str
    release: str
    request_id: str


@dataclass(frozen=True)
class BodyInference:
    """An answer to a body that the model's own transforms read (an image, a text).

    Attributes:
        answer: As the model answers it: label -> score, the best first, where it has labels; else its outputs as nested lists.
        version, release, request_id: As of an `Inference`.
    """

    answer: Any
    version: str
    release: str
    request_id: str


class Client:
    """A client of one gateway; keeps its connections. Use it as a context manager, or call `close`.

        with Client() as client:
            logits = client.infer("digits", images)  # [n, 1, 8, 8] float32 -> [n, 10] float32

    Args:
        url: The gateway.
        channel: The channel that is asked; None means production.
        timeout_s: Seconds for one call.
        api_key: The key that the gateway asks for; empty if it asks for none.
        ca_file: PEM certificates to trust instead of the system's. Raises UsageError if it cannot be read.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        channel: str | None = None,
        timeout_s: float = 30.0,
        api_key: str = "",
        ca_file: Path | None = None,
    ) -> None:
        self._url = url
        headers = ({"x-modelway-channel": channel} if channel else {}) | ({"x-api-key": api_key} if api_key else {})
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=headers, verify=tls_context(ca_file))
        self._signatures: dict[str, Signature] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def infer(self, model: str, inputs: Array | Mapping[str, Array], *, version: int | None = None) -> Array | Mapping[str, Array]:
        """Ask the model; one array in gives one array out where the model has one input and one output.

        Args:
            inputs: One array, or input name -> array; batch first.
            version: An exact version; None takes what the channel serves.

        Raises:
            UsageError: The input does not fit the signature.
            NotFound: No such model or version.
            TimedOut, Unavailable: The platform does not answer, or not in time.
        """
        outputs = self.infer_traced(model, inputs, version=version).outputs
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def infer_traced(self, model: str, inputs: Array | Mapping[str, Array], *, version: int | None = None) -> Inference:
        """As `infer`, with version, release and request id of the answer. Same errors."""
        check_model_name(model)
        tensors = inputs if isinstance(inputs, Mapping) else {self._single_input(model): inputs}
        body = {"inputs": [_encode(name, np.asarray(array)) for name, array in tensors.items()]}
        where = f"/versions/{version}" if version is not None else ""
        response = self._send("POST", f"/v2/models/{model}{where}/infer", json=body)
        outputs = {str(output["name"]): _decode(output) for output in response.json()["outputs"]}
        headers = response.headers
        return Inference(outputs, headers["x-modelway-version"], headers["x-modelway-release"], headers["x-request-id"])

    def infer_body(self, model: str, body: bytes, content_type: str, *, version: int | None = None) -> BodyInference:
        """Ask the model with a body that it declares a transform for, for example the bytes of a JPEG file. Same errors as `infer`.

        Args:
            content_type: `image/jpeg`, `image/png` or `text/plain`.
        """
        where = f"/{version}" if version is not None else ""
        path = f"/predictions/{check_model_name(model)}{where}"
        response = self._send("POST", path, content=body, headers={"content-type": content_type})
        headers = response.headers
        return BodyInference(response.json(), headers["x-modelway-version"], headers["x-modelway-release"], headers["x-request-id"])

    def signature(self, model: str) -> Signature:
        """Inputs and outputs of what the channel serves. Same errors as `infer`."""
        return Signature.from_json(self._send("GET", f"/v2/models/{check_model_name(model)}").json())

    def _single_input(self, model: str) -> str:
        if model not in self._signatures:
            self._signatures[model] = self.signature(model)
        names = [spec.name for spec in self._signatures[model].inputs]
        if len(names) != 1:
            raise UsageError(f"{model} has {len(names)} inputs", f"Give a mapping with the keys {', '.join(names)}.")
        return names[0]

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TimeoutException as error:
            raise TimedOut(f"no answer in time ({self._url}{path})", "Try again, or give the client a longer timeout.") from error
        except httpx.TransportError as error:
            raise Unavailable(f"the gateway does not answer ({self._url}: {error})", "Start the platform with `modelway up`.") from error
        if not response.is_success:
            raise _error_of(response)
        return response


def tls_context(ca_file: Path | None) -> ssl.SSLContext | bool:
    """What httpx verifies servers with. Raises UsageError if the file cannot be read."""
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot use the certificates to trust ({ca_file}: {error})", "Name a readable PEM file.") from error


def _error_of(response: httpx.Response) -> ModelwayError:
    try:
        text = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = response.text[:200]
    what = (
        f"{text.rstrip('.')} ({response.url.path}: HTTP {response.status_code}, request {response.headers.get('x-request-id', 'unknown')})"
    )
    if response.status_code == NotFound.http_status:
        return NotFound(what)
    if response.status_code == TimedOut.http_status:
        return TimedOut(what)
    return UsageError(what) if response.is_client_error else Unavailable(what)


def _encode(name: str, array: Array) -> dict[str, Any]:
    datatype = "BYTES" if array.dtype.kind in "OU" else PROTOCOL_DTYPES.get(array.dtype.name)
    if datatype is None:
        raise UsageError(f"input {name} has a dtype that the protocol lacks ({array.dtype})", f"Use one of {', '.join(PROTOCOL_DTYPES)}.")
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


def _decode(output: Mapping[str, Any]) -> Array:
    return np.asarray(output["data"], dtype=NUMPY_DTYPES[output["datatype"]]).reshape(output["shape"])
