"""A whole node, from `sandgate up` to `sandgate down`, in a network namespace of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from faults.machine import node_groups
from internet import namespaces
from internet.templates import built_templates
from sandgate.settings import Settings
from sandgate.supervisor.component import CHILD_ENVIRONMENT
from sandgate.supervisor.preconditions import require_preconditions
from sandgate.supervisor.supervisor import StartError
from supervisor.home import COMPONENTS, Home, one_message, up

pytestmark = pytest.mark.timeout(180)


def test_a_node_goes_up_once_shows_itself_and_leaves_nothing(home: Home) -> None:
    done = home.sandgate("up")
    assert done.returncode == 0, done.stderr
    assert "is up after" in done.stdout
    processes = home.processes()
    assert set(processes) == {*COMPONENTS, "supervisor"}
    again = home.sandgate("up")
    assert again.returncode == 0
    assert "was up already" in again.stdout
    assert home.processes() == processes

    second = home.sandgate("serve")
    assert second.returncode == 1
    assert f"a node already runs in {home.data}" in second.stderr

    status = home.status()
    assert status["state"] == "ready"
    assert status["https_port"] == 443
    assert status["sandboxes"] == 0
    assert "base" in status["templates"]
    assert home.sandgate("status").returncode == 0

    doctor = {row["check"]: row for row in json.loads(home.sandgate("doctor", "--json").stdout)}
    assert doctor["port"]["detail"] == "127.0.0.1:443 is served by this node"
    assert doctor["address range"]["level"] == "ok"

    key = (home.data / "api_key").read_text().strip()
    for process in processes.values():
        for part in ("cmdline", "environ"):
            assert key.encode() not in Path(f"/proc/{process.pid}/{part}").read_bytes()
    assert key not in home.log()

    down = home.sandgate("down")
    assert (down.returncode, down.stdout) == (0, "sandgate is down\n"), down.stderr
    assert not any(process.alive() for process in processes.values())
    assert home.leftovers() == []
    assert home.sandgate("status").returncode == 3


def test_the_exports_are_all_that_the_official_sdk_needs(home: Home) -> None:
    up(home)
    command = f"{sys.executable} -m sandgate env"
    use = "from e2b import Sandbox; s = Sandbox.create(); print(s.commands.run('whoami').stdout)"
    script = f'eval "$({command})" && exec {sys.executable} -c "{use}"'
    done = home.run("sh", "-c", script)
    assert done.stdout.strip() == "user", done.stderr + home.log()


def test_the_bound_classes_start_the_node_and_need_no_variables(home: Home) -> None:
    code = """
import asyncio, os
import e2b
from sandgate import ALL_TRAFFIC, AsyncSandbox, Sandbox
os.environ["E2B_DOMAIN"], os.environ["E2B_API_KEY"] = "elsewhere.invalid", "e2b_0"
os.environ["E2B_API_URL"] = "https://elsewhere.invalid"
sandbox = Sandbox.create(network={"deny_out": [ALL_TRAFFIC]})
assert isinstance(sandbox, e2b.Sandbox) and type(sandbox) is Sandbox
same = Sandbox.connect(sandbox.sandbox_id)
assert type(same) is Sandbox
print(same.commands.run("echo hello").stdout.strip())
assert [item.sandbox_id for item in Sandbox.list().next_items()] == [sandbox.sandbox_id]
sandbox.set_timeout(100)
async def main():
    other = await AsyncSandbox.create()
    assert type(other) is AsyncSandbox
    assert len(await AsyncSandbox.list().next_items()) == 2
    print((await other.commands.run("echo async")).stdout.strip())
    assert await AsyncSandbox.kill(other.sandbox_id)
asyncio.run(main())
assert Sandbox.kill(sandbox.sandbox_id)
assert not Sandbox.kill(sandbox.sandbox_id)
"""
    assert home.sandgate("status").returncode == 3
    stale = {
        "E2B_DOMAIN": "e2b.invalid",
        "E2B_API_KEY": "e2b_" + "1" * 40,
        "E2B_SANDBOX_URL": "https://elsewhere.invalid",
        "E2B_DEBUG": "true",
    }
    assert home.python(code, **stale).splitlines() == ["hello", "async"]
    assert home.status()["state"] == "ready"


def test_requests_curl_and_node_trust_the_node_after_a_call(home: Home) -> None:
    code = """
import os, socket, subprocess, warnings
import requests
from sandgate import Sandbox
warnings.simplefilter("error")
before = dict(os.environ)
with Sandbox.create() as sandbox:
    sandbox.commands.run("python3 -m http.server 3000", background=True)
    url = "https://" + sandbox.get_host(3000)
    # Not every machine's C library resolves names below .localhost.
    socket.getaddrinfo = lambda name, port, *_, **__: [(2, 1, 6, "", ("127.0.0.1", port))]
    for _ in range(100):
        if (status := requests.get(url).status_code) == 200:
            break
    print(status)
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url]
    print(subprocess.run(curl, capture_output=True, text=True).stdout)
    print(subprocess.run([*curl], env={**os.environ, "CURL_CA_BUNDLE": before["SSL_CERT_FILE"]},
                         capture_output=True, text=True).stdout)
    script = (
        "const name = process.argv[1].slice(8); require('https').get({host: '127.0.0.1', "
        "servername: name, headers: {host: name}}, "
        "(r) => {console.log(r.statusCode); process.exit()})"
    )
    node = ["node", "-e", script, url]
    print(subprocess.run(node, capture_output=True, text=True, timeout=20).stdout)
"""
    machine = "/etc/ssl/certs/ca-certificates.crt"
    said = home.python(code, SSL_CERT_FILE=machine, REQUESTS_CA_BUNDLE=machine)
    # Curl's third request was given the machine's authorities alone, which do not suffice.
    assert said.split() == ["200", "200", "000", "200"]


def test_an_sdk_without_bound_clients_is_led_to_the_node_by_the_variables(home: Home) -> None:
    code = """
import os
from e2b.connection_config import ClientFactory
del ClientFactory._resolve_api_params
import sandgate.client
print(sorted(name for name in os.environ if name.startswith("E2B_")), os.environ["E2B_DOMAIN"])
print(os.environ["E2B_API_KEY"])
"""
    stale = {"E2B_DOMAIN": "e2b.invalid", "E2B_API_KEY": "e2b_1", "E2B_DEBUG": "true"}
    first, key = home.python(code, **stale).splitlines()
    assert first == "['E2B_API_KEY', 'E2B_DOMAIN'] sandgate.localhost"
    assert key == (home.data / "api_key").read_text().strip()


def test_a_second_node_in_the_namespace_is_told_what_to_do(home: Home) -> None:
    up(home)
    launcher = home.processes()["launcher"]
    other = home.directory / "other"
    other.mkdir()
    (other / "templates").symlink_to(built_templates())
    config = home.directory / "other.toml"
    config.write_text(
        f'data_dir = "{other}"\nupstream_dns = ["192.0.2.53"]\nhttps_port = 8443\n'
        'address_range = "10.211.0.0/16"\n'
    )
    for command in ("up", "serve"):
        one_message(
            home.sandgate(command, "--config", str(config)),
            f"another node runs in this network namespace (its launcher has pid {launcher.pid})",
            "`ip netns exec NAME sandgate up`",
        )
    # As a node in another pid namespace, whose processes are not seen: the kernel says it then.
    hidden = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "sandgate")
    one_message(
        home.run(*hidden, "serve", "--config", str(config)),
        "another node runs in this network namespace, and there can be one",
    )
    assert node_groups(Settings(data_dir=other).node_id) == []
    assert home.status()["state"] == "ready"
    assert home.processes()["launcher"] == launcher


@pytest.mark.parametrize("command", ["up", "serve"])
def test_what_would_fail_at_every_start_is_one_message_with_the_remedy(
    home: Home, command: str
) -> None:
    usual = home.config.read_text()

    def says(more: str, *parts: str) -> None:
        home.config.write_text(usual + more)
        one_message(home.sandgate(command), *parts)
        assert not (home.data / "run").exists()

    says('listen = "203.0.113.7"\n', "listen = 203.0.113.7", "no such address", "set listen to")
    namespaces.run("ip", "-n", home.namespace, "addr", "add", "10.9.0.1/24", "dev", "up0")
    says(
        'address_range = "10.0.0.0/12"\n',
        "address_range = 10.0.0.0/12 is in use on this machine: 10.9.0.0/24 by up0",
        "set address_range to a private range",
    )
    with namespaces.inside(home.namespace), socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 53))
        says("", "port 53 at 198.18.0.2", "already in use", "bind-interfaces")
    home.config.write_text(usual)
    for capability, part in (("sys_admin", "namespaces"), ("net_admin", "the network cannot")):
        limited = ("setpriv", "--bounding-set", f"-{capability}", sys.executable, "-m", "sandgate")
        one_message(home.run(*limited, command), part, "`sudo sandgate doctor` names the fix")


def test_a_missing_program_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(CHILD_ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(StartError, match=r"haproxy is not installed.*apt-get install haproxy"):
        require_preconditions(Settings(data_dir=tmp_path))


def test_sandboxes_survive_a_killed_supervisor_and_the_next_takes_over(home: Home) -> None:
    up(home)
    create = "from sandgate import Sandbox; print(Sandbox.create(timeout=600).sandbox_id)"
    sandbox = home.python(create)
    use = (
        "from sandgate import Sandbox; "
        f"print(Sandbox.connect('{sandbox}').commands.run('echo x >> f; wc -l < f').stdout)"
    )
    assert home.python(use) == "1"
    first = home.processes()
    first["supervisor"].send(signal.SIGKILL)
    assert first["supervisor"].wait(5)
    assert home.sandgate("status").returncode == 3
    up(home)
    assert home.python(use) == "2"
    second = home.processes()
    assert not any(process.alive() for process in first.values())
    # All of them at once, as when memory runs out.
    for name in ("supervisor", *COMPONENTS):
        second[name].send(signal.SIGKILL)
    up(home)
    assert home.python(use) == "3"
    third = home.processes()
    third["supervisor"].send(signal.SIGKILL)
    assert third["supervisor"].wait(5)
    done = home.sandgate("down")
    assert (done.returncode, done.stdout) == (0, "sandgate is down\n"), done.stderr
    assert not any(process.alive() for process in third.values())
    assert home.leftovers() == []


def test_a_node_in_the_foreground_tells_the_service_manager_and_ends_on_sigterm(
    home: Home,
) -> None:
    told: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(home.directory / "notify"))
        manager.settimeout(60)
        reader = threading.Thread(target=lambda: told.append(manager.recv(1000)))
        reader.start()
        with namespaces.inside(home.namespace):
            serve = subprocess.Popen(
                [sys.executable, "-m", "sandgate", "serve"],
                stderr=subprocess.PIPE,
                env={**home.environment(), "NOTIFY_SOCKET": str(home.directory / "notify")},
            )
        reader.join()
        assert told == [b"READY=1\nSTATUS=serving https://api.sandgate.localhost"]
        serve.send_signal(signal.SIGTERM)
        _, said = serve.communicate(timeout=60)
        assert serve.returncode == 0, said
        assert b"ready: https://api.sandgate.localhost" in said
    assert home.leftovers() == []


def test_with_443_taken_the_port_is_carried_in_the_domain(home: Home) -> None:
    with namespaces.inside(home.namespace), socket.create_server(("127.0.0.1", 443)):
        up(home)
        status = home.status()
    assert (status["https_port"], status["domain"]) == (8443, "sandgate.localhost:8443")
    assert "E2B_DOMAIN=sandgate.localhost:8443\n" in home.sandgate("env").stdout
    code = (
        "from sandgate import Sandbox; s = Sandbox.create(); print(s.commands.run('echo a').stdout)"
    )
    assert home.python(code) == "a"
    with home.config.open("a") as file:
        file.write("https_port = 8443\n")
    home.sandgate("down")
    with namespaces.inside(home.namespace), socket.create_server(("127.0.0.1", 8443)):
        done = home.sandgate("up")
    assert done.returncode == 1
    assert "https_port = 8443: 127.0.0.1:8443: already in use" in done.stderr
