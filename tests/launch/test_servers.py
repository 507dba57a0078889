"""A Ray that is started here: its servers listen on loopback alone, want a token, and leave the user's home as it was."""

import os
import signal
from pathlib import Path

import grpc
import pytest
import ray

from launch import cluster as module
from launch.cluster import start_here
from tests.launch.processes import LOOPBACK, command, descendants, servers


@ray.remote
def pid_of_a_worker():
    return os.getpid()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the sockets of processes are read as Linux shows them")
def test_all_servers_of_a_local_ray_listen_on_loopback_alone_and_want_a_token():
    worker = ray.get(pid_of_a_worker.remote())
    found = {pid: servers(pid) for pid in (os.getpid(), worker, *descendants(os.getpid())) if command(pid)}
    names = b" ".join(command(pid) for pid, sockets in found.items() if sockets)
    for part in (b"gcs_server", b"raylet", b"DashboardAgent", b"RuntimeEnvAgent"):
        assert part in names
    assert found[worker]
    assert {address for sockets in found.values() for address, _ in sockets} <= LOOPBACK

    call = grpc.insecure_channel(ray.get_runtime_context().gcs_address).unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("chosen", "is_made"),
    [
        ({}, True),
        ({"RAY_AUTH_MODE": "token"}, True),
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({"RAY_AUTH_TOKEN_PATH": "/there/is/one"}, False),
        ({"RAY_AUTH_TOKEN": "mine"}, False),
        ({"HOME": "with a token"}, False),
    ],
)
def test_a_token_is_made_for_the_process_where_the_user_has_none(tmp_path, monkeypatch, chosen, is_made):
    (tmp_path / "with a token/.ray").mkdir(parents=True)
    (tmp_path / "with a token/.ray/auth_token").touch()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back at the end
        monkeypatch.delenv(name)
    for name, value in {"HOME": "without", **chosen}.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "HOME" else value)
    monkeypatch.setattr(module.ray, "init", lambda **_: None)
    start_here()
    token = os.environ.get("RAY_AUTH_TOKEN")
    assert (token is not None and len(token) == 64) == is_made
    assert {name: os.environ[name] for name in chosen if name != "HOME"} == {
        name: value for name, value in chosen.items() if name != "HOME"
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_ray_starts_waits_for_it_and_stops_it(monkeypatch, number):
    done = []

    def init(**_):
        ray._private.utils.set_sigterm_handler(lambda *_: done.append("ended without a word"))
        signal.raise_signal(number)
        done.append("started")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(module.ray, "init", init)
    monkeypatch.setattr(module.ray, "shutdown", lambda: done.append("stopped"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), module.cluster():
        pytest.fail("went on")
    assert done == ["started", "stopped"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("address", ["", "local"])
def test_an_address_that_says_this_machine_starts_a_ray_here(monkeypatch, address):
    started = []
    monkeypatch.setenv("RAY_ADDRESS", address)
    for name, stand_in in {
        "is_initialized": lambda: False,
        "init": lambda **keys: started.append(keys["address"]),
        "cluster_resources": dict,
        "shutdown": lambda: started.append("stopped"),
    }.items():
        monkeypatch.setattr(module.ray, name, stand_in)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with module.cluster():
        assert started == ["local"]
    assert started == ["local", "stopped"]
