"""The real TorchServe as a node: what can go wrong on one machine, and what must not be left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from registry.errors import Unavailable
from registry.names import ModelVersion
from serving.archive import Archive, RuntimeOptions, build_archive, open_archive
from serving.golden import PROBE_HEADERS
from serving.ports import LoadState
from support.bundles import expected_logits, make_bundle
from support.nodes import LOAD_TIMEOUT_S, RunningNode, make_archive
from support.polling import wait_until

pytestmark = pytest.mark.integration

ROWS = [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 0.0, 2.0]]
V2 = {"x-modelway-protocol": "v2-infer"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    node = RunningNode(tmp_path_factory.mktemp("node"), max_batch_delay_ms=100)
    try:
        yield node.start()
    finally:
        node.stop()


@pytest.fixture(scope="module")
def archive(running: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Version 1, READY all the time."""
    archive = make_archive(tmp_path_factory.mktemp("v1"), 1)
    running.load(archive)
    return archive


def predict(running: RunningNode, archive: Archive, rows: object = ROWS, headers: dict[str, str] | None = None) -> tuple[int, object]:
    status, body = running.node.infer("digits", archive.engine_version, json.dumps(rows).encode(), headers or {}, 20.0)
    return status, json.loads(body)


def assert_serves(running: RunningNode, archive: Archive, seed: int) -> None:
    status, answer = predict(running, archive)
    assert status == 200, answer
    np.testing.assert_allclose(answer, expected_logits(ROWS, weights_seed=seed), rtol=1e-4)


def test_every_protocol_answers_with_the_models_numbers(running: RunningNode, archive: Archive) -> None:
    expected = expected_logits(ROWS, weights_seed=1)
    assert_serves(running, archive, 1)
    v2 = {"id": "a", "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 4], "data": ROWS}]}
    status, answer = predict(running, archive, v2, V2)
    assert status == 200
    assert isinstance(answer, dict)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "a")
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (2, 3)), expected, rtol=1e-4)
    _, v1 = predict(running, archive, {"instances": ROWS}, {"x-modelway-protocol": "v1-predict"})
    assert isinstance(v1, dict)
    np.testing.assert_allclose(v1["predictions"], expected, rtol=1e-4)
    _, ready = predict(running, archive, {}, {"x-modelway-protocol": "v2-ready"})
    assert ready == {"name": "digits", "version": "1", "ready": True}


def test_the_binary_tensor_extension_passes_through_torchserve(running: RunningNode, archive: Archive) -> None:
    raw = np.asarray(ROWS, dtype="<f4").tobytes()
    head = json.dumps(
        {
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {**V2, "Inference-Header-Content-Length": str(len(head)), "content-type": "application/octet-stream"}
    with httpx.Client(transport=httpx.HTTPTransport(uds=running.node.inference_socket), base_url="http://node") as client:
        response = client.post(
            f"/predictions/digits/{archive.engine_version}",
            content=head + raw,
            headers={**headers, "authorization": f"Bearer {running.node.inference_key()}"},
        )
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    assert json.loads(response.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 24}
    got = np.frombuffer(response.content[length:], dtype="<f4").reshape(2, 3)
    np.testing.assert_allclose(got, expected_logits(ROWS, weights_seed=1), rtol=1e-4)


def test_one_poisoned_request_of_a_batch_fails_alone(running: RunningNode, archive: Archive) -> None:
    """P19 over the real batching: eight at once, one malformed; each answer belongs to its own request."""
    requests: list[object] = [[[float(i), 0.0, 0.0, 1.0]] for i in range(8)]
    requests[3] = [["poison", 0.0, 0.0, 1.0]]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda rows: predict(running, archive, rows), requests))
    for index, (status, answer) in enumerate(answers):
        if index == 3:
            assert (status, answer) == (400, {"error": "input input: expected FP32 values, got a string"})
        else:
            assert status == 200
            np.testing.assert_allclose(answer, expected_logits([[float(index), 0.0, 0.0, 1.0]], weights_seed=1), rtol=1e-4)


def test_hostile_bodies_get_4xx_and_the_worker_lives_on(running: RunningNode, archive: Archive) -> None:
    pids = running.worker_pids()
    bodies = [
        b"",
        b"{",
        b"[" * 100_000,
        b"[[NaN,1,2,3]]",
        b"[[1e999,1,2,3]]",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[[]]",
        b'{"instances": 1}',
        b"[[1,2,3]]",
    ]
    for body in bodies:
        status, answer = running.node.infer("digits", archive.engine_version, body, {}, 20.0)
        assert 400 <= status < 500, (body[:20], status)
        assert set(json.loads(answer)) == {"error"}
    status, _ = running.node.infer(
        "digits", archive.engine_version, b"a=1&b=2", {"content-type": "application/x-www-form-urlencoded"}, 20.0
    )
    assert status == 400
    assert running.worker_pids() == pids
    assert_serves(running, archive, 1)


def test_variants_of_one_version_are_loaded_side_by_side(running: RunningNode, archive: Archive, tmp_path: Path) -> None:
    other = make_archive(tmp_path, 1, variant="torchscript-fp32")
    running.load(other)
    assert other.engine_version.startswith("1-torchscript-fp32-")
    assert_serves(running, other, 1)
    assert_serves(running, archive, 1)
    running.node.unregister("digits", other.engine_version)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash-at-load", "could not be loaded"),
        ("wrong-numbers", "output logits is off by 1"),
        ("nan", "output logits is off by inf"),
        ("wrong-shape", "has shape"),
    ],
)
def test_a_bad_version_is_failed_with_its_reason_while_another_serves(
    running: RunningNode, archive: Archive, tmp_path: Path, fault: str, reason: str
) -> None:
    bad = make_archive(tmp_path, 2, fault=fault)
    running.node.store(bad.path, bad.sha256)
    running.node.register(bad.name)
    running.node.scale("digits", bad.engine_version, 1)
    wait_until(lambda: running.state(bad) is LoadState.FAILED, 30, f"{fault} FAILED")
    assert reason in running.detail(bad)
    assert "\n" not in running.detail(bad)
    assert_serves(running, archive, 1)
    running.node.unregister("digits", bad.engine_version)
    assert running.state(bad) is None


def test_a_changed_file_is_refused_by_the_worker(running: RunningNode, archive: Archive, tmp_path: Path) -> None:
    """P15's last gate: the archive is unpacked, then a file changes before a worker loads it."""
    victim = make_archive(tmp_path, 3)
    running.node.store(victim.path, victim.sha256)
    before = set((running.config.tmp_dir / "models").iterdir())
    running.node.register(victim.name)
    (unpacked,) = set((running.config.tmp_dir / "models").iterdir()) - before
    model = unpacked / "model" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    running.node.scale("digits", victim.engine_version, 1)
    wait_until(lambda: running.state(victim) is LoadState.FAILED, 30, "FAILED")
    assert "wrong digest of a file in the archive (model/model.onnx)" in running.detail(victim)
    running.node.unregister("digits", victim.engine_version)


def test_what_is_not_finite_is_a_500_of_its_own_request(running: RunningNode, tmp_path: Path) -> None:
    planted = make_archive(tmp_path, 4, fault="nan-above-1000")
    running.load(planted)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda value: predict(running, planted, [[value, 0.0, 0.0, 0.0]]), [1.0, 2000.0, 2.0, 3.0]))
    assert [status for status, _ in answers] == [200, 500, 200, 200]
    assert "not finite" in str(answers[1][1])
    running.node.unregister("digits", planted.engine_version)


def test_a_killed_worker_comes_back_by_itself(running: RunningNode, archive: Archive) -> None:
    (pid,) = running.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: running.state(archive) is not LoadState.READY, 10, "not READY")
    assert running.state(archive) is LoadState.LOADING  # killed, not failing to load
    wait_until(lambda: running.state(archive) is LoadState.READY, LOAD_TIMEOUT_S, "READY again")
    assert running.worker_pids() != [pid]
    assert_serves(running, archive, 1)


def test_losing_one_worker_of_two_is_degraded_and_serves(running: RunningNode, archive: Archive) -> None:
    running.node.scale("digits", archive.engine_version, 2)
    wait_until(lambda: running.state(archive) is LoadState.READY and len(running.worker_pids()) == 2, LOAD_TIMEOUT_S, "two workers")
    os.kill(running.worker_pids()[0], signal.SIGKILL)
    wait_until(lambda: running.state(archive) is LoadState.DEGRADED, 10, "DEGRADED")
    assert_serves(running, archive, 1)
    wait_until(lambda: running.state(archive) is LoadState.READY, LOAD_TIMEOUT_S, "READY")
    running.node.scale("digits", archive.engine_version, 1)
    wait_until(lambda: len(running.worker_pids()) == 1, 20, "one worker")


def test_unregistering_leaves_no_file_of_the_version(running: RunningNode, archive: Archive, tmp_path: Path) -> None:
    unpacked = {path.name for path in (running.config.tmp_dir / "models").iterdir()}
    other = make_archive(tmp_path, 5)
    running.load(other)
    running.node.register(other.name)  # again, which TorchServe would unpack again
    running.node.unregister("digits", other.engine_version)
    assert not (running.config.model_store / other.name).exists()
    assert not (running.config.status_dir / "digits" / other.engine_version).exists()
    assert {path.name for path in (running.config.tmp_dir / "models").iterdir()} == unpacked


def test_unregistering_torchserves_default_version_keeps_the_others(running: RunningNode, archive: Archive, tmp_path: Path) -> None:
    first, second = make_archive(tmp_path, 1, model="other"), make_archive(tmp_path, 2, model="other")
    for each in (first, second):
        running.load(each)
    running.node.unregister("other", first.engine_version)
    assert running.state(first) is None
    status, body = running.node.infer("other", second.engine_version, json.dumps(ROWS).encode(), {}, 20.0)
    assert status == 200
    np.testing.assert_allclose(json.loads(body), expected_logits(ROWS, weights_seed=2), rtol=1e-4)
    running.node.unregister("other", second.engine_version)
    assert running.state(archive) is LoadState.READY


def test_keys_are_private_needed_and_never_expire(running: RunningNode, archive: Archive) -> None:
    assert stat.S_IMODE(running.config.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(running.config.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(running.config.socket_dir.stat().st_mode) == 0o700
    keys = json.loads(running.config.key_file.read_text())
    for kind in ("management", "inference"):
        assert datetime.fromisoformat(keys[kind]["expiration time"]) > datetime.now(UTC) + timedelta(days=365 * 50)
    for socket_path, path in ((running.config.management_socket, "/models"), (running.config.inference_socket, "/ping")):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_path)), base_url="http://node") as client:
            assert client.get(path).status_code == 400
            assert client.get(path, headers={"authorization": "Bearer 12345678"}).status_code == 400
    assert running.node.inference_key() == keys["inference"]["key"]


def test_only_its_sockets_and_two_loopback_ports_are_open(running: RunningNode, archive: Archive) -> None:
    """P17 for a node: gRPC cannot be turned off, so it must be on loopback and ask for the key."""
    listening = {c.laddr for c in psutil.Process(running.process.pid).net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    properties = dict(line.split("=", 1) for line in running.config.properties_file.read_text().splitlines())
    ports = {int(properties["grpc_inference_port"]), int(properties["grpc_management_port"])}
    assert {address.port for address in listening} == ports
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    for pid in running.worker_pids():
        assert not [c for c in psutil.Process(pid).net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]


def test_workers_see_no_environment_but_their_own(tmp_path: Path, running: RunningNode, archive: Archive) -> None:
    allowed = {"PATH", "LANG", "HOME", "TMPDIR", "TEMP", "LOG_LOCATION", "METRICS_LOCATION", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
    allowed |= {
        "PYTHONNOUSERSITE",
        "MODELWAY_WORKER_STATUS_DIR",
        "MODELWAY_WORKER_SOCKET_DIR",
        "MODELWAY_WORKER_LIMITS",
        "ORT_DISABLE_TELEMETRY",
        "ORT_TELEMETRY_DISABLED",
        "LC_CTYPE",
    }
    for pid in running.worker_pids():
        names = set(psutil.Process(pid).environ())
        assert {name for name in names if not name.startswith(("TS_", "METRICS_"))} <= allowed
    assert not list(running.config.work_dir.rglob("deviceid"))  # ONNX Runtime reports nothing home


def test_metrics_are_prometheus_text_with_the_engine_version(running: RunningNode, archive: Archive) -> None:
    predict(running, archive)
    assert f'ts_inference_requests_total{{model_name="digits",model_version="{archive.engine_version}"' in running.node.metrics_text()


def test_no_line_is_logged_per_request(running: RunningNode, archive: Archive) -> None:
    logs = list(running.config.log_dir.glob("*.log"))
    before = {log: log.stat().st_size for log in logs}
    for _ in range(20):
        assert predict(running, archive)[0] == 200
    assert {log: log.stat().st_size for log in logs} == before


def test_a_node_that_was_killed_starts_again_and_two_run_side_by_side(tmp_path: Path, running: RunningNode, archive: Archive) -> None:
    second = RunningNode(tmp_path, "node-1").start()
    try:
        other = make_archive(tmp_path, 6)
        second.load(other)
        key = second.node.inference_key()
        second.kill()
        assert not second.node.observe().reachable
        assert not second.node.ready()
        assert second.config.inference_socket.exists()  # a stale one
        with pytest.raises(Unavailable, match="node-1 does not answer"):
            second.node.scale("digits", other.engine_version, 1)
        second.start()
        observed = second.node.observe()
        assert observed.reachable
        assert not observed.archives
        assert observed.stored == {other.name}
        assert second.node.inference_key() != key
        second.load(other)
        assert_serves(second, other, 6)
        assert_serves(running, archive, 1)
        assert running.state(other) is None
    finally:
        second.stop()


def test_nothing_is_left_after_a_stop(tmp_path: Path) -> None:
    before = {path.name for path in Path("/tmp").iterdir()}
    node = RunningNode(tmp_path, "node-2").start()
    archive = make_archive(tmp_path, 7)
    node.load(archive, num_workers=2)
    pids = [node.process.pid, *node.worker_pids()]
    assert len(pids) == 3
    ports = [c.laddr.port for c in psutil.Process(node.process.pid).net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    node.stop()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 10, "no process")
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    left = {path.name for path in Path("/tmp").iterdir()} - before
    assert not {name for name in left if name.startswith(("mw-", "hsperfdata", ".ts.sock", "models", ".model_server", "libnetty"))}


def test_the_golden_probe_sees_the_node_as_it_is(running: RunningNode, archive: Archive, tmp_path: Path) -> None:
    golden = open_archive(archive.path).golden
    status, body = running.node.infer("digits", archive.engine_version, golden.request(), PROBE_HEADERS, 20.0)
    assert golden.judge(status, body).problems == ()
    headers, request = golden.binary_request()
    status, body = running.node.infer("digits", archive.engine_version, request, headers, 20.0)
    assert golden.judge(status, body).problems == ()
    other = open_archive(make_archive(tmp_path, 8).path).golden
    assert "off by" in other.judge(status, body).problems[0]


def test_a_worker_that_dies_at_load_without_a_word_is_failed_too(running: RunningNode, archive: Archive, tmp_path: Path) -> None:
    """As one that is out of memory, or crashes in native code: killed each time it loads."""
    victim = make_archive(tmp_path, 9)
    running.node.store(victim.path, victim.sha256)
    running.node.register(victim.name)
    running.node.scale("digits", victim.engine_version, 1)
    killed: list[int] = []

    def kill_if_it_loads_until_it_is_failed() -> bool:
        for file in (running.config.status_dir / "digits" / victim.engine_version).glob("*.json"):
            said = json.loads(file.read_text())
            if said["state"] == "loading" and said["pid"] not in killed:
                killed.append(said["pid"])
                os.kill(said["pid"], signal.SIGKILL)
        return running.state(victim) is LoadState.FAILED

    wait_until(kill_if_it_loads_until_it_is_failed, 90, "FAILED")
    assert len(killed) >= 2  # one kill is not enough: it may be anybody's
    assert "without a word" in running.detail(victim)
    assert_serves(running, archive, 1)
    running.node.unregister("digits", victim.engine_version)


def test_workers_read_their_socket_in_large_pieces(running: RunningNode, archive: Archive) -> None:
    """The reader is in place on the real node, and a body of many pieces arrives whole."""
    rows = np.arange(4 * 1024, dtype=np.float32).reshape(1024, 4)
    status, body = running.node.infer("digits", archive.engine_version, json.dumps(rows.tolist()).encode(), {}, 20.0)
    assert status == 200
    np.testing.assert_allclose(json.loads(body), expected_logits(rows, weights_seed=1), rtol=1e-4)
    # A worker that waits for a request is in recv of a large piece, and not in one of a single byte.
    pid = running.worker_pids()[0]
    wait_until(lambda: int(Path(f"/proc/{pid}/syscall").read_text().split()[3], 16) >= 1 << 17, 10, "a read of a large piece")


def test_an_archive_that_wants_a_gpu_is_not_served_by_the_cpu(running: RunningNode, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime can use a GPU")
    version = ModelVersion("digits", 21)
    bundle = make_bundle(tmp_path / "bundle", version=version, weights_seed=1)
    archive = build_archive(bundle, "onnx-fp32", version, tmp_path / "archives", RuntimeOptions(provider="CUDAExecutionProvider"))
    running.node.store(archive.path, archive.sha256)
    running.node.register(archive.name)
    running.node.scale("digits", archive.engine_version, 1)
    wait_until(lambda: running.state(archive) is LoadState.FAILED, LOAD_TIMEOUT_S, "FAILED")
    assert "CUDAExecutionProvider is not installed here" in running.detail(archive)
    running.node.unregister("digits", archive.engine_version)
