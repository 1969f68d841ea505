"""Images, texts and labels through the real gateway, and through TorchServe's own path, as the documentation shows them."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from modelway.composition import open_registry, open_tracking
from registry.bundle import Bundle
from registry.names import ModelVersion
from serving.archive import Archive, build_archive
from support.live_platform import LivePlatform
from support.nodes import RunningNode
from support.transform_bundles import SIDE, VARIANT, make_image_bundle, make_text_bundle, picture

pytestmark = pytest.mark.integration

ORANGE = {"red": pytest.approx(1.0, abs=0.02), "green": pytest.approx(0.4, abs=0.02)}
BODIES = {
    "orange.jpg": picture((255, 102, 0), format="JPEG"),
    "orange.png": picture((255, 102, 0)),
    "large.jpg": picture((255, 102, 0), format="JPEG", size=(4000, 3000)),
}
SENTENCES = ["good good film", "bad"]
COUNTS = [2.0, 0.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    for name, body in BODIES.items():
        (directory / name).write_bytes(body)
    (directory / "sentence.txt").write_text("good good bad film")
    (directory / "huge.jpg").write_bytes(b"\xff\xd8\xff" + bytes(70 << 20))
    return directory


@pytest.fixture(scope="module")
def colors(platform: LivePlatform) -> str:
    return serve(platform, ModelVersion("colors", 1), make_image_bundle)


@pytest.fixture(scope="module")
def words(platform: LivePlatform) -> str:
    return serve(platform, ModelVersion("words", 1), make_text_bundle)


def serve(platform: LivePlatform, version: ModelVersion, make: Any) -> str:
    platform.register(version.model, version.version, exported=False)
    bundle: Bundle = make(platform.home.parent / f"bundle-{version.model}", version=version)
    open_registry(open_tracking(platform.settings)).attach_bundle(version, bundle.root)
    platform.must("promote", str(version))
    return version.model


def curl(platform: LivePlatform, path: str, *arguments: str) -> tuple[int, Any]:
    """Status and JSON of one request of the command line's."""
    url = f"{platform.settings.gateway_url}{path}"
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *arguments, url],
        capture_output=True,
        check=True,
        timeout=30,
    )
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(body)


# --- images


@pytest.mark.parametrize("path", ["/predictions/colors", "/predictions/colors/1"])
@pytest.mark.parametrize("name", BODIES)
def test_curl_sends_a_picture_and_gets_labels(platform: LivePlatform, colors: str, pictures: Path, name: str, path: str) -> None:
    assert curl(platform, path, "-T", str(pictures / name)) == (200, ORANGE)


@pytest.mark.parametrize("name", ["orange.jpg", "orange.png"])
def test_the_command_line_sends_a_picture_and_prints_labels(platform: LivePlatform, colors: str, pictures: Path, name: str) -> None:
    answer = platform.must("predict", colors, "--input", str(pictures / name))
    assert (answer["version"], answer["answer"]) == ("1", ORANGE)
    refused = platform.run("predict", colors, "--input", str(pictures / "sentence.txt"))
    assert refused.returncode == 2
    assert "415" in refused.stderr
    missing = platform.run("predict", colors, "--input", str(pictures / "no.jpg"))
    assert missing.returncode == 2
    assert "no.jpg" in missing.stderr


@pytest.mark.parametrize(("name", "content_type"), [("orange.jpg", "image/jpeg"), ("orange.png", "image/png")])
def test_a_picture_with_its_content_type_in_every_protocol(
    platform: LivePlatform, colors: str, pictures: Path, name: str, content_type: str
) -> None:
    send = ("-H", f"content-type: {content_type}", "--data-binary", f"@{pictures / name}")
    assert curl(platform, "/predictions/colors", *send) == (200, ORANGE)
    assert curl(platform, "/v1/models/colors:predict", *send) == (200, {"predictions": [ORANGE]})
    status, answer = curl(platform, "/v2/models/colors/infer", *send)
    (output,) = answer["outputs"]
    assert (status, output["datatype"], output["shape"]) == (200, "BYTES", [1, 2])
    assert [text.split(":")[1:] for text in output["data"]] == [["0", "red"], ["1", "green"]]


def test_what_is_no_picture_is_refused_in_words(platform: LivePlatform, colors: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(BODIES["large.jpg"][:5000])
    status, answer = curl(platform, "/predictions/colors", "-T", str(tmp_path / "cut.jpg"))
    assert (status, "cannot be decoded" in answer["error"]) == (400, True)
    status, answer = curl(platform, "/predictions/colors", "-T", str(pictures / "huge.jpg"))
    assert (status, set(answer)) == (413, {"error"})
    status, answer = curl(platform, "/predictions/colors", "-T", str(pictures / "orange.png"), "-H", "content-type: image/webp")
    assert (status, "image/jpeg, image/png" in answer["error"]) == (415, True)


def test_put_is_for_torchserves_path_only(platform: LivePlatform, colors: str, pictures: Path) -> None:
    response = httpx.put(f"{platform.settings.gateway_url}/v2/models/colors/infer", content=b"{}")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    response = httpx.delete(f"{platform.settings.gateway_url}/predictions/colors")
    assert (response.status_code, response.headers["allow"]) == (405, "POST, PUT")
    assert "Use POST or PUT" in response.json()["error"]


def test_put_takes_tensors_too(platform: LivePlatform, colors: str) -> None:
    rows = np.full((2, 3, SIDE, SIDE), 0.5).tolist()
    response = httpx.put(f"{platform.settings.gateway_url}/predictions/colors", json=rows)
    np.testing.assert_allclose(response.json(), np.full((2, 3), 0.5))
    assert response.headers["x-modelway-version"] == "1"


def test_random_pictures_never_break_a_worker(platform: LivePlatform, colors: str) -> None:
    chance = random.Random(7)
    with httpx.Client(base_url=platform.settings.gateway_url, timeout=30) as client:
        for number in range(300):
            body = bytearray(chance.choice([BODIES["orange.jpg"], BODIES["orange.png"]]))
            for _ in range(chance.randint(1, 8)):
                body[chance.randrange(3, len(body))] = chance.randrange(256)
            response = client.put("/predictions/colors", content=bytes(body[: chance.randint(8, len(body))]))
            assert response.status_code in (200, 400, 413), (number, response.text)
        assert client.put("/predictions/colors", content=BODIES["orange.png"]).json() == ORANGE


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_asks_for_classes(platform: LivePlatform, colors: str, binary: bool) -> None:
    from tritonclient import http

    client = http.InferenceServerClient(url=platform.settings.gateway_url.removeprefix("http://"))
    try:
        tensor = http.InferInput("image", [1, 3, SIDE, SIDE], "FP32")
        tensor.set_data_from_numpy(np.full((1, 3, SIDE, SIDE), 0.25, np.float32), binary_data=binary)
        outputs = [http.InferRequestedOutput("logits", binary_data=binary, class_count=3)]
        classes = client.infer("colors", [tensor], outputs=outputs).as_numpy("logits")
    finally:
        client.close()
    texts = [text.decode() if isinstance(text, bytes) else text for text in classes.ravel()]
    assert texts == ["0.25:0:red", "0.25:1:green", "0.25:2:blue"]


# --- texts


def test_curl_sends_a_text_and_gets_labels(platform: LivePlatform, words: str, pictures: Path) -> None:
    status, answer = curl(platform, "/predictions/words", "-H", "content-type: text/plain", "-T", str(pictures / "sentence.txt"))
    assert (status, list(answer)) == (200, ["good", "bad"])
    assert answer["good"] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-4)
    status, answer = curl(platform, "/v1/models/words:predict", "-d", json.dumps({"instances": SENTENCES}))
    assert (status, np.ravel(answer["predictions"]).tolist()) == (200, COUNTS)


def test_tritonclient_sends_texts(platform: LivePlatform, words: str) -> None:
    from tritonclient import grpc, http

    address = platform.settings.gateway_url.removeprefix("http://")
    for library in (http, grpc):
        client = library.InferenceServerClient(address)
        try:
            tensor = library.InferInput("text", [2, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text] for text in SENTENCES], dtype=object))
            assert client.infer("words", [tensor]).as_numpy("logits").ravel().tolist() == COUNTS
        finally:
            client.close()


def test_wrong_texts_are_refused_in_words(platform: LivePlatform, words: str) -> None:
    url = f"{platform.settings.gateway_url}/predictions/words"
    for body, status in ((b"\xff", 400), (b"x" * 2000, 413), (b" ", 400)):
        response = httpx.post(url, content=body, headers={"content-type": "text/plain"})
        assert (response.status_code, set(response.json())) == (status, {"error"})


# --- TorchServe's own path, which the gateway takes when a worker's socket is gone


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    running = RunningNode(tmp_path_factory.mktemp("node"))
    try:
        yield running.start()
    finally:
        running.stop()


def test_torchserves_own_path_takes_pictures_and_texts(node: RunningNode, tmp_path: Path) -> None:
    archives: dict[str, Archive] = {}
    for model, make in (("colors", make_image_bundle), ("words", make_text_bundle)):
        version = ModelVersion(model, 1)
        archives[model] = build_archive(make(tmp_path / model, version=version), VARIANT, version, tmp_path)
        node.load(archives[model])
    key = {"authorization": f"Bearer {node.node.inference_key()}"}
    transport = httpx.HTTPTransport(uds=str(node.config.inference_socket))
    with httpx.Client(base_url="http://node", transport=transport, headers=key, timeout=30) as client:
        colors, words = (f"/predictions/{model}/{archive.engine_version}" for model, archive in archives.items())
        for name, body in BODIES.items():
            assert client.put(colors, content=body).json() == ORANGE, name
        assert client.post(colors, content=BODIES["orange.jpg"], headers={"content-type": "image/jpeg"}).json() == ORANGE
        refused = client.put(colors, content=BODIES["orange.png"][:60])
        assert (refused.status_code, set(refused.json())) == (400, {"error"})
        answer = client.post(words, content=b"good good bad", headers={"content-type": "text/plain"}).json()
        assert list(answer) == ["good", "bad"]
