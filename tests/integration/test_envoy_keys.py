"""API keys at the real gateway: who gets in, how often, to which model, and what the worker and the logs see of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.api_keys import KeyFile, new_key
from serving.envoy.stats import samples
from support.envoy_process import RunningEnvoy, backend, live
from support.polling import wait_until
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration

PATH = "/v2/models/digits/infer"


class Gateway:
    """A gateway that asks for keys, and the words of the keys that it knows."""

    def __init__(self, envoy: RunningEnvoy, file: KeyFile, node: UdsServer) -> None:
        self.envoy, self.file, self.node = envoy, file, node
        self.words: dict[str, str] = {}
        self.table = live(backend(1, node.socket), backend(2, node.socket, model="other"))

    def add(self, name: str, **limits: object) -> None:
        key, self.words[name] = new_key(name, **limits)  # type: ignore[arg-type]
        self.file.add(key)

    def apply(self) -> None:
        self.envoy.gateway.apply(self.table)

    def ask(self, name: str = "", path: str = PATH, **headers: str) -> httpx.Response:
        sent = {"x-api-key": self.words[name]} if name else {}
        return httpx.post(f"{self.envoy.url}{path}", json={}, headers={**sent, **headers})


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    file = KeyFile(tmp_path / "api-keys.toml")
    file.add(new_key("first")[0])
    with RunningEnvoy(api_keys=file) as envoy, UdsServer(envoy.sockets / "a.sock") as node:
        one = Gateway(envoy, file, node)
        one.add("app")
        one.apply()
        yield one


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_known_key_gets_in_by_either_header_and_the_worker_never_sees_it(gateway: Gateway) -> None:
    word = gateway.words["app"]
    for headers in ({"x-api-key": word}, {"authorization": f"Bearer {word}"}, {"authorization": f"bearer  {word}"}):
        assert gateway.ask(**headers).status_code == 200
        seen = gateway.node.requests[-1].headers
        assert word not in json.dumps(seen)
        assert base64.b64decode(word).decode().partition(":")[2] not in json.dumps(seen)
        assert not {"x-api-key", "authorization", "x-modelway-credentials"} & seen.keys()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": "nonsense"},
        {"x-api-key": encoded("app:wrong")},
        {"x-api-key": encoded("app:")},
        {"x-api-key": encoded(":")},
        {"x-api-key": encoded("unknown:x")},
        {"x-api-key": encoded("-:x")},
        {"x-api-key": "A" * 50_000},
        {"authorization": "Bearer"},
        {"authorization": "Digest x"},
        {"x-modelway-key-name": "app"},
        {"x-modelway-credentials": encoded("app:x")},
        {"cookie": "x-api-key=1"},
    ],
    ids=lambda headers: str(headers)[:50],
)
def test_anything_else_is_401_and_reaches_no_worker(gateway: Gateway, headers: dict[str, str]) -> None:
    response = gateway.ask(**headers)
    assert response.status_code == 401
    assert "an API key is needed" in response.json()["error"]
    assert response.headers["www-authenticate"] == 'Bearer realm="modelway"'
    assert gateway.node.requests == []


def test_a_key_with_another_keys_secret_does_not_get_in(gateway: Gateway) -> None:
    gateway.add("other")
    gateway.apply()
    secret = base64.b64decode(gateway.words["other"]).decode().partition(":")[2]
    assert gateway.ask(**{"x-api-key": encoded(f"app:{secret}")}).status_code == 401
    assert gateway.ask("other").status_code == 200


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/ping"])
def test_health_needs_no_key_and_names_no_model(gateway: Gateway, path: str) -> None:
    assert httpx.get(f"{gateway.envoy.url}{path}").status_code == 200
    gateway.envoy.gateway.apply(live(backend(1)))
    response = httpx.get(f"{gateway.envoy.url}{path}")
    assert (response.status_code == 200) == (path == "/v2/health/live")
    assert "digits" not in response.text


@pytest.mark.parametrize("path", ["/v2", "/v2/models/digits", "/v2/models/absent", "/v1/models/digits", "/nowhere", "/v2/health/live/x"])
def test_everything_else_needs_one_whether_it_exists_or_not(gateway: Gateway, path: str) -> None:
    assert httpx.get(f"{gateway.envoy.url}{path}").status_code == 401


def test_a_limit_is_429_with_retry_after_and_is_each_keys_own(gateway: Gateway) -> None:
    gateway.add("slow", requests_per_s=0.01, burst=3)
    gateway.apply()
    answers = [gateway.ask("slow") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].headers["retry-after"] == "1"
    assert "this API key has used up its requests per second" in answers[-1].json()["error"]
    assert gateway.ask("app").status_code == 200
    assert len(gateway.node.requests) == 4


def test_a_limited_key_goes_on_at_its_rate(gateway: Gateway) -> None:
    gateway.add("brisk", requests_per_s=20, burst=1)
    gateway.apply()
    assert gateway.ask("brisk").status_code == 200
    wait_until(lambda: gateway.ask("brisk").status_code == 429, what="the limit")
    wait_until(lambda: gateway.ask("brisk").status_code == 200, what="the next token")


def test_a_key_may_ask_its_models_only(gateway: Gateway) -> None:
    gateway.add("narrow", models=("other",))
    gateway.apply()
    response = gateway.ask("narrow")
    assert response.status_code == 403
    assert "may not ask this model" in response.json()["error"]
    assert gateway.ask("narrow", "/v2/models/digits/versions/1/infer").status_code == 403
    assert gateway.ask("narrow", "/predictions/other/2").status_code == 200
    assert gateway.ask("app").status_code == 200
    assert httpx.get(f"{gateway.envoy.url}/v2/models/digits", headers={"x-api-key": gateway.words["narrow"]}).status_code == 403


def test_a_key_for_no_model_may_ask_none(gateway: Gateway) -> None:
    gateway.file.remove("app")
    gateway.file.remove("first")
    gateway.add("nothing", models=())
    gateway.apply()
    assert gateway.ask("nothing").status_code == 403


def test_changed_keys_are_noticed_and_take_effect_without_a_restart(gateway: Gateway) -> None:
    assert gateway.envoy.gateway.observe().digest == gateway.table.digest
    gateway.add("late")
    assert gateway.ask("late").status_code == 401
    assert gateway.envoy.gateway.observe().digest is None, "the controller applies a table when the gateway has not the wanted one"
    gateway.apply()
    assert gateway.ask("late").status_code == 200
    gateway.file.remove("late")
    gateway.apply()
    assert gateway.ask("late").status_code == 401
    assert gateway.ask("app").status_code == 200


def test_with_no_key_at_all_nobody_gets_in(gateway: Gateway) -> None:
    for name in ("app", "first"):
        gateway.file.remove(name)
    gateway.apply()
    assert gateway.ask("app").status_code == 401
    assert gateway.ask().status_code == 401


def test_routes_of_a_time_without_keys_are_not_served_after_a_restart(tmp_path: Path) -> None:
    """No controller looks after this gateway: what it starts with is what counts."""
    with RunningEnvoy() as envoy, UdsServer(envoy.sockets / "a.sock") as node:
        envoy.gateway.apply(live(backend(1, node.socket)))
        assert httpx.post(f"{envoy.url}{PATH}", json={}).status_code == 200
        envoy.stop()
        file = KeyFile(tmp_path / "keys")
        key, word = new_key("app")
        file.add(key)
        object.__setattr__(envoy.config, "api_keys", file)
        envoy.start()
        assert httpx.post(f"{envoy.url}{PATH}", json={}).status_code == 401
        assert httpx.post(f"{envoy.url}{PATH}", json={}, headers={"x-api-key": word}).status_code == 200


def test_a_name_that_a_client_gives_itself_is_nowhere(gateway: Gateway) -> None:
    forged = {"x-modelway-key-name": "forged"}
    httpx.get(f"{gateway.envoy.url}/v2/health/live", headers=forged)
    gateway.ask("app", **forged)
    log = gateway.envoy.config.access_log
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 2, what="the access log")
    assert [json.loads(line)["key"] for line in log.read_text().splitlines()] == [None, "app"]
    assert "forged" not in gateway.envoy.gateway.metrics_text()


def test_logs_and_metrics_have_the_name_and_never_the_key(gateway: Gateway) -> None:
    for _ in range(3):
        gateway.ask("app")
    gateway.ask(**{"x-api-key": encoded("app:wrong-secret")})
    gateway.ask(**{"authorization": f"Bearer {gateway.words['app']}", "x-modelway-key-name": "forged"})
    log = gateway.envoy.config.access_log
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 5, what="the access log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["key"], line["status"]) for line in lines] == [("app", 200)] * 3 + [(None, 401), ("app", 200)]
    counted = {
        (labels.get("key"), labels.get("status")): value
        for name, labels, value in samples(gateway.envoy.gateway.metrics_text())
        if "requests_by_key" in name
    }
    assert counted[("app", "200")] == 4
    everything = log.read_text() + gateway.envoy.config.log.read_text() + gateway.envoy.gateway.metrics_text()
    for secret in (gateway.words["app"], base64.b64decode(gateway.words["app"]).decode().partition(":")[2], "wrong-secret", "forged"):
        assert secret not in everything


def test_the_gateways_files_have_digests_only_and_are_private(gateway: Gateway) -> None:
    config = gateway.envoy.config
    secret = base64.b64decode(gateway.words["app"]).decode().partition(":")[2]
    for path in config.directory.rglob("*.json"):
        assert secret not in path.read_text()
        assert path.stat().st_mode & 0o077 == 0, path


def test_without_keys_set_nobody_needs_one_and_a_sent_one_goes_nowhere() -> None:
    with RunningEnvoy() as envoy, UdsServer(envoy.sockets / "a.sock") as node:
        envoy.gateway.apply(live(backend(1, node.socket)))
        response = httpx.post(f"{envoy.url}{PATH}", json={}, headers={"x-api-key": "a-secret", "authorization": "Bearer b-secret"})
        assert response.status_code == 200
        assert "secret" not in json.dumps(node.requests[-1].headers)
