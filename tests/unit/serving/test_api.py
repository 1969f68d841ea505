"""The control API over fakes: what it takes, what it answers, and how it says no."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from serving.api import ControlPlane, create_app
from serving.verify import verify_ledger
from support.control_plane import InMemoryPlane

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using `httpx` with `starlette.testclient` is deprecated")  # its successor is not in wide use yet
    from starlette.testclient import TestClient


@pytest.fixture
def plane(tmp_path: Path) -> InMemoryPlane:
    plane = InMemoryPlane(tmp_path)
    plane.register(1)
    plane.register(2)
    return plane


@pytest.fixture
def api(plane: InMemoryPlane) -> TestClient:
    app = create_app(
        ControlPlane(
            view=plane.view,
            releases=plane.releases,
            controller=plane.controller,
            aliases=plane.aliases,
            verify=lambda: [verify_ledger(plane.ledger)],
            metrics={"": lambda: "own 1\n", "nodes/node-0": lambda: "node 1\n"},
            allowed_hosts=["testserver"],
        )
    )
    return TestClient(app)


def promotion(version: int, **changes):
    return {"version": version, "actor": "tester", **changes}


def test_a_promotion_is_created_once(api: TestClient, plane: InMemoryPlane):
    first = api.post("/v1/models/digits/releases", json=promotion(1))
    assert (first.status_code, first.json()["created"]) == (201, True)
    plane.settle()
    again = api.post("/v1/models/digits/releases", json=promotion(1))
    assert (again.status_code, again.json()["created"], again.json()["release"]["status"]) == (200, False, "live")


def test_a_release_can_be_waited_for(api: TestClient, plane: InMemoryPlane):
    api.post("/v1/models/digits/releases", json=promotion(1))
    assert api.get("/v1/models/digits/releases/1", params={"wait_s": 0.01}).json()["status"] == "pending"
    plane.settle()
    assert api.get("/v1/models/digits/releases/1", params={"wait_s": 30}).json()["status"] == "live"


def test_a_rollback(api: TestClient, plane: InMemoryPlane):
    for version in (1, 2):
        api.post("/v1/models/digits/releases", json=promotion(version, strategy="immediate"))
        plane.settle()
    answer = api.post("/v1/models/digits/rollback", json={"actor": "tester", "reason": "bad"})
    assert answer.status_code == 201
    assert (answer.json()["release"]["version"], answer.json()["release"]["kind"]) == (1, "rollback")
    plane.settle()
    channel = api.get("/v1/status").json()["channels"][0]
    assert (channel["live"]["version"], channel["rollback_target"]) == (1, None)


def test_status_says_what_a_rollback_goes_back_to_and_whether_it_is_warm(api: TestClient, plane: InMemoryPlane):
    for version in (1, 2):
        api.post("/v1/models/digits/releases", json=promotion(version, strategy="immediate"))
        plane.settle()
    status = api.get("/v1/status").json()
    assert (status["channels"][0]["rollback_target"]["version"], status["channels"][0]["rollback_target"]["warm"]) == (1, True)
    assert status["components"] == {"registry": "unknown", "gateway": "up", "node-0": "up"}
    assert (status["in_sync"], status["pending"]) == (True, [])


def test_a_dry_run_changes_nothing(api: TestClient, plane: InMemoryPlane):
    answer = api.post("/v1/models/digits/releases", json=promotion(1, dry_run=True))
    assert answer.status_code == 200
    assert answer.json()["steps"][-1] == "record release 1 live"
    assert plane.channel.records == ()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/models/digits/releases", {"version": 1}, 400, "actor"),
        ("POST", "/v1/models/digits/releases", promotion(0), 400, "version"),
        ("POST", "/v1/models/digits/releases", promotion("1"), 400, "version"),
        ("POST", "/v1/models/digits/releases", promotion(1, colour="red"), 400, "colour"),
        ("POST", "/v1/models/digits/releases", promotion(1, strategy="shadow"), 400, "strategy"),
        ("POST", "/v1/models/digits/releases", promotion(1, steps="10"), 400, "not a canary step"),
        ("POST", "/v1/models/digits/releases", promotion(1, steps="50%:1s,10%:1s"), 400, "must rise"),
        ("POST", "/v1/models/digits/releases", promotion(1, channel="Latest"), 400, "invalid channel"),
        ("POST", "/v1/models/no such/releases", promotion(1), 400, "invalid model name"),
        ("POST", "/v1/models/digits/releases", promotion(9), 404, "versions are 1, 2"),
        ("POST", "/v1/models/digits/releases", promotion(1, variant="onnx-fp64"), 404, "onnx-fp32"),
        ("POST", "/v1/models/digits/releases", promotion(1, expect=7), 409, "release 7 is not the newest"),
        ("POST", "/v1/models/digits/rollback", {"actor": "tester"}, 404, "never released"),
        ("GET", "/v1/models/digits/releases", None, 404, "never released"),
        ("GET", "/v1/models/digits/releases/5", None, 404, "no release 5"),
        ("GET", "/metrics/nodes/node-9", None, 404, "/metrics/nodes/node-0"),
        ("GET", "/v1/nothing", None, 404, "Not Found"),
        ("DELETE", "/v1/status", None, 405, "Method Not Allowed"),
    ],
)
def test_errors_say_what_and_which(api: TestClient, method, path, body, status, words):  # noqa: PLR0917
    answer = api.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"] + answer.json()["next_step"]


def test_a_body_that_is_no_json_is_a_usage_error(api: TestClient):
    answer = api.post("/v1/models/digits/releases", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "error" in answer.json()


def test_a_foreign_host_name_is_refused(api: TestClient):
    assert api.get("/v1/status", headers={"host": "attacker.example"}).status_code == 400


def test_metrics_pages(api: TestClient):
    assert api.get("/metrics").text == "own 1\n"
    assert api.get("/metrics/nodes/node-0").text == "node 1\n"


def test_the_api_describes_itself(api: TestClient):
    paths = api.get("/openapi.json").json()["paths"]
    assert {"/v1/status", "/v1/models/{model}/releases", "/v1/models/{model}/rollback", "/metrics"} <= set(paths)
