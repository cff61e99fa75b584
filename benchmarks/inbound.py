"""Into sandboxes: requests by URL, and files."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

from e2b import Sandbox

from benchmarks.place import Place
from benchmarks.report import Report, Row, median

_SERVER = """
import asyncio
class Answer(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
async def main():
    server = await asyncio.get_running_loop().create_server(Answer, "0.0.0.0", 3000)
    await server.serve_forever()
asyncio.run(main())
"""
_STATIC_PORT = 9445
_PORT = 3000
_FILES_PORT = 9446
_SECONDS = 3.0
_GIB = 1 << 30


def measure_requests(place: Place, report: Report, rounds: int) -> None:
    """A sandbox's URL, and a plain HAProxy with a static route to the same server."""
    with Sandbox.create(timeout=600) as sandbox:
        sandbox.files.write("/home/user/server.py", _SERVER)
        server = sandbox.commands.run("python3 server.py", background=True, timeout=0)
        address = sandbox.commands.run("hostname -I").stdout.strip()
        pem = _certificate(place)
        config = place.scratch / "static.cfg"
        config.write_text(
            "global\n  maxconn 4000\n  nbthread 1\ndefaults\n  mode http\n  timeout client 1m\n"
            "  timeout server 1m\n  timeout connect 5s\n  option http-server-close\n"
            f"frontend f\n  bind 127.0.0.1:{_STATIC_PORT} ssl crt {pem} alpn http/1.1\n"
            f"  default_backend b\nbackend b\n  server s {address}:{_PORT}\n"
        )
        static = place.start(place.namespace, "haproxy", "-db", "-f", str(config))
        gate = _haproxy_of(place)
        host, _, port = sandbox.get_host(_PORT).partition(":")
        time.sleep(1)
        ours: list[float] = []
        theirs: list[float] = []
        costs: list[float] = []
        their_costs: list[float] = []
        for _ in range(rounds):
            for pid, where, rates, spent in (
                (gate, int(port or 443), ours, costs),
                (static.pid, _STATIC_PORT, theirs, their_costs),
            ):
                before = _cpu(pid)
                rates.append(_rate(host, where))
                spent.append((_cpu(pid) - before) / (rates[-1] * _SECONDS))
        server.kill()
    ratio = median(ours) / median(theirs)
    cost, least = median(costs), median(their_costs)
    report.add(
        "Ingress",
        Row(
            "requests a second / HAProxy with a static route",
            ratio,
            "x",
            0.9,
            at_most=False,
            note=f"{median(ours):.0f}/s",
        ),
        Row(
            "time of HAProxy alone / with a static route",
            cost / least,
            "x",
            note=f"{cost * 1e6:.0f} us",
        ),
    )


def _certificate(place: Place) -> Path:
    found = (place.node.data_dir / "certificates").glob("*.pem")
    return next(path for path in found if "PRIVATE" in path.read_text())


def _haproxy_of(place: Place) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"haproxy" and str(place.node.data_dir).encode() in words[-2]:
            return int(path.parent.name)
    raise LookupError("the node's HAProxy does not run")


def _cpu(pid: int) -> float:
    """Seconds that it ran."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9


def _rate(host: str, port: int, seconds: float = _SECONDS, connections: int = 8) -> float:
    """Requests a second over kept connections, by `wrk` where it is installed."""
    if shutil.which("wrk") is not None:
        command = ["wrk", "-t2", f"-c{connections}", f"-d{seconds:.0f}s", f"https://{host}:{port}/"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        assert found is not None, done.stdout
        return float(found[1])
    return _rate_by_sockets(host, port, seconds, connections)


def _rate_by_sockets(host: str, port: int, seconds: float, connections: int) -> float:
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    counts = [0] * connections
    until = time.monotonic() + seconds

    def ask(index: int) -> None:
        connection = http.client.HTTPSConnection(host, port, context=context, timeout=10)
        connection.connect()
        request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        while time.monotonic() < until:
            connection.sock.sendall(request)
            assert connection.sock.recv(4096).startswith(b"HTTP/1.1 200")
            counts[index] += 1
        connection.close()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def measure_files(place: Place, report: Report) -> None:
    """1 GiB each way, and what `cp` takes in a tmpfs."""
    shared = Path("/dev/shm") / place.scratch.name
    shared.mkdir()
    try:
        source = shared / "source"
        with source.open("wb") as file:
            file.truncate(_GIB)
            piece = os.urandom(1 << 20)
            for _ in range(_GIB >> 20):
                file.write(piece)
        begun = time.perf_counter()
        subprocess.run(["cp", str(source), str(shared / "copy")], check=True)
        plain = _GIB / (time.perf_counter() - begun)
        (shared / "copy").unlink()
        up, down, memory = _transfer(source)
        least_up, least_down = _least(place, source)
    finally:
        shutil.rmtree(shared)
    report.add(
        "Files of 1 GiB",
        Row(
            "upload / cp in tmpfs", up / plain, "x", 0.3, at_most=False, note=f"{up / 1e6:.0f} MB/s"
        ),
        Row(
            "download / cp in tmpfs",
            down / plain,
            "x",
            0.3,
            at_most=False,
            note=f"{down / 1e6:.0f} MB/s",
        ),
    )
    report.add(
        "Of the client",
        *(
            Row(
                f"SDK: {name} of 1 GiB from the smallest server / cp",
                rate / plain,
                "x",
                note=f"{rate / 1e6:.0f} MB/s",
            )
            for name, rate in (("upload", least_up), ("download", least_down))
        ),
    )
    report.add("Memory of envd", Row("more than before, during 1 GiB each way", memory, "MiB", 20))


def _transfer(source: Path) -> tuple[float, float, float]:
    with Sandbox.create(timeout=600) as sandbox:
        envd = _envd_of(sandbox)
        before, highest, done = _resident(envd), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                highest[0] = max(highest[0], _resident(envd))

        watcher = threading.Thread(target=watch)
        watcher.start()
        up, down = _both_ways(sandbox, source)
        done.set()
        watcher.join()
        return up, down, highest[0] - before


def _least(place: Place, source: Path) -> tuple[float, float]:
    """What the SDK itself can do: a server that only encrypts and copies."""
    program, pem = str(Path(__file__).parent / "programs.py"), str(_certificate(place))
    place.start(
        place.namespace,
        *(sys.executable, program, "files", pem, "127.0.0.1", str(_FILES_PORT), str(_GIB)),
    )
    time.sleep(1)
    with Sandbox.create(timeout=600) as sandbox:
        domain = sandbox.get_host(_PORT).partition(":")[0].partition(".")[2]
        url = f"https://files.{domain}:{_FILES_PORT}"
        return _both_ways(Sandbox.connect(sandbox.sandbox_id, sandbox_url=url), source)


def _both_ways(sandbox: Sandbox, source: Path) -> tuple[float, float]:
    """Bytes a second of an upload and of a download."""
    begun = time.perf_counter()
    with source.open("rb") as file:
        sandbox.files.write("/dev/shm/big", file, request_timeout=0)
    up = _GIB / (time.perf_counter() - begun)
    begun, got = time.perf_counter(), 0
    for piece in sandbox.files.read("/dev/shm/big", format="stream", request_timeout=0):
        got += len(piece)
    assert got == _GIB, got
    return up, _GIB / (time.perf_counter() - begun)


def _envd_of(sandbox: Sandbox) -> int:
    name = sandbox.sandbox_id
    for path in Path("/proc").glob("[0-9]*/root/etc/hostname"):
        try:
            if (
                path.read_text().strip() == name
                and (path.parents[2] / "comm").read_text() == "envd\n"
            ):
                return int(path.parents[2].name)
        except OSError:
            continue
    raise LookupError(f"no envd of {name}")


def _resident(pid: int) -> float:
    """MiB of its own."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit("run `python -m benchmarks`")
