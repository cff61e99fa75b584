from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from internet import namespaces
from sandgate.cli.doctor import CHECKS, Finding, Level, examine, machine, network, node, report
from sandgate.cli.doctor.finding import fail, ok, warn
from sandgate.cli.doctor.trial import trial
from sandgate.runtime import linux
from sandgate.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace of its own with an uplink; the test runs inside."""
    name = f"sgdoctor{os.getpid()}"
    namespaces.create(name)
    try:
        namespaces.run(
            *("ip", "-n", name, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        )
        for link in ("up0", "up1"):
            namespaces.run("ip", "-n", name, "link", "set", link, "up")
        with namespaces.inside(name):
            yield name
    finally:
        namespaces.delete(name)


def says(finding: Finding, level: Level, *parts: str) -> None:
    assert finding.level is level, finding
    for part in parts:
        assert part in f"{finding.detail} | {finding.fix}", finding
    assert bool(finding.fix) is (level is not Level.OK), finding


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("6.1.0-13-amd64", Level.OK),
        ("6.1", Level.OK),
        ("6.8.0-45-generic", Level.OK),
        ("6.12.57+deb13-amd64", Level.WARN),
        ("6.18.44-x", Level.WARN),
        ("6.18.45", Level.OK),
        ("6.19", Level.WARN),
        ("7.1.0-rc1", Level.OK),
        ("10.0.0", Level.OK),
        ("6.0.12", Level.FAIL),
        ("5.15.0-91-generic", Level.FAIL),
        ("strange", Level.WARN),
    ],
)
def test_the_kernel_must_be_new_enough(release: str, level: Level) -> None:
    says(machine.judge_kernel(release), level, release)


@pytest.mark.parametrize(
    ("said", "level", "part"),
    [
        (
            "HAProxy version 2.6.12-1\nBuilt with OpenSSL\nBuilt with Lua version",
            Level.OK,
            "2.6.12",
        ),
        ("HA-Proxy version 2.4.22\nBuilt with OpenSSL\nBuilt with Lua version", Level.OK, "2.4.22"),
        ("HAProxy version 3.0.1\nBuilt with OpenSSL\nBuilt with Lua", Level.OK, "3.0.1"),
        ("HAProxy version 2.3.9\nBuilt with OpenSSL\nBuilt with Lua", Level.FAIL, "older than 2.4"),
        ("HAProxy version 2.6.1\nBuilt with OpenSSL", Level.FAIL, "without Lua"),
        ("HAProxy version 2.6.1\nBuilt with Lua", Level.FAIL, "without TLS"),
        ("nonsense", Level.FAIL, "cannot tell"),
    ],
)
def test_haproxy_must_be_new_enough_and_have_lua(said: str, level: Level, part: str) -> None:
    says(network.judge_haproxy(said), level, part)


def test_a_missing_haproxy_is_named_with_the_package(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    says(network.haproxy(settings), Level.FAIL, "apt-get install haproxy")


def test_a_port_that_is_taken_fails_with_its_number(settings: Settings, namespace: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = settings.model_copy(update={"https_port": port})
        says(network.port(taken), Level.FAIL, str(port), "already in use", "https_port")
    says(network.port(taken), Level.OK, f"127.0.0.1:{port} is free")


def test_443_in_use_means_8443_and_both_in_use_a_failure(
    settings: Settings, namespace: str
) -> None:
    says(network.port(settings), Level.OK, "127.0.0.1:443 is free")
    with socket.create_server(("0.0.0.0", 443)):
        says(network.port(settings), Level.WARN, "8443")
        with socket.create_server(("127.0.0.1", 8443)):
            says(network.port(settings), Level.FAIL, "127.0.0.1:8443")


def test_an_entry_at_an_address_of_another_machine_fails(
    settings: Settings, namespace: str
) -> None:
    elsewhere = settings.model_copy(update={"listen": IPv4Address("203.0.113.7")})
    says(network.port(elsewhere), Level.FAIL, "203.0.113.7", "no such address", "set listen to")


def test_an_address_range_with_a_route_is_refused(settings: Settings, namespace: str) -> None:
    says(network.address_range(settings), Level.OK, "198.18.0.0/16")
    namespaces.run("ip", "-n", namespace, "addr", "add", "198.18.5.1/24", "dev", "up0")
    says(network.address_range(settings), Level.FAIL, "198.18.5.0/24 by up0", "10.211.0.0/16")


def test_a_forward_drop_of_another_firewall_is_found(settings: Settings, namespace: str) -> None:
    says(network.other_firewalls(settings), Level.OK)
    chain = "{ type filter hook forward priority 0; policy drop; }"
    namespaces.run("nft", f"add table ip filter; add chain ip filter FORWARD {chain}")
    says(
        network.other_firewalls(settings),
        Level.WARN,
        "ip filter FORWARD",
        "iptables -I FORWARD -i sg+ -j ACCEPT && iptables -I FORWARD -o sg+ -j ACCEPT",
    )


def test_what_a_node_needs_of_the_kernel_works_here_and_leaves_nothing(
    settings: Settings, namespace: str
) -> None:
    settings.data_dir.mkdir()
    before = _traces()
    for check in (
        machine.privileges,
        machine.cgroups,
        machine.user_namespaces,
        machine.disks,
        machine.overlay,
        network.nftables,
    ):
        says(check(settings), Level.OK)
    deadline = time.monotonic() + 5
    while _traces() != before and time.monotonic() < deadline:
        time.sleep(0.05)  # a loop device and a namespace go a moment after their last user
    assert _traces() == before
    assert list(settings.data_dir.iterdir()) == []


def _traces() -> list[str]:
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob("*/sandgate/doctor*")]
    mounts = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if "/.doctor-" in line or "/sandgate-doctor-" in line
    ]
    loops = [
        str(path)
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if "/.doctor-" in _read(path)
    ]
    links = namespaces.run("ip", "-brief", "link") + namespaces.run("nft", "list", "tables")
    return [*groups, *mounts, *loops, links]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_without_user_namespaces_the_check_fails(settings: Settings) -> None:
    def attempt() -> None:
        # Only in the user namespace of this child.
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        finding = machine.user_namespaces(settings)
        assert finding.level is Level.FAIL, finding
        assert "max_user_namespaces" in finding.fix

    assert trial(attempt, namespaces=linux.CLONE_NEWUSER) is None


def test_a_file_system_with_little_room_is_noticed(tmp_path: Path) -> None:
    def attempt() -> None:
        linux.mount("tmpfs", str(tmp_path), "tmpfs", 0, "size=64m")
        finding = machine.disk_space(Settings(data_dir=tmp_path / "not" / "yet"))
        assert finding.level is Level.FAIL, finding
        assert "data_dir" in finding.fix

    assert trial(attempt, namespaces=linux.CLONE_NEWNS) is None


def test_missing_templates_are_named(settings: Settings) -> None:
    says(node.templates(settings), Level.FAIL, "base", "sandgate template build")


@pytest.mark.parametrize(
    ("user", "part"), [("nosuchuser", "useradd --system"), ("root", "must not be root")]
)
def test_a_service_user_that_cannot_be_used_is_a_failure(
    settings: Settings, user: str, part: str
) -> None:
    says(node.service_user(settings.model_copy(update={"service_user": user})), Level.FAIL, part)


def test_a_data_directory_that_the_service_user_cannot_enter_is_a_failure(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "data").mkdir(parents=True)
    closed.chmod(0o700)
    settings = Settings(data_dir=closed / "data")
    says(node.service_user(settings), Level.FAIL, "cannot pass through", "chmod o+x")


def test_trust_names_the_variables_that_lack_the_authority(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says(node.certificate_trust(settings), Level.OK, "first start")
    pem = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
    directory = settings.data_dir / "certificates"
    directory.mkdir(parents=True)
    (directory / "ca.pem").write_text(pem.format("OURS"))
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(pem.format("OTHER") + pem.format("OURS"))
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(bundle))
    monkeypatch.delenv("NODE_EXTRA_CA_CERTS", raising=False)
    says(node.certificate_trust(settings), Level.WARN, "(NODE_EXTRA_CA_CERTS)", "sandgate env")
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(directory / "ca.pem"))
    says(node.certificate_trust(settings), Level.OK)


def test_a_domain_that_does_not_lead_here_is_noticed(settings: Settings) -> None:
    elsewhere = settings.model_copy(
        update={"domain": "sandgate.invalid", "listen": IPv4Address("192.0.2.7")}
    )
    says(
        network.name_resolution(elsewhere),
        Level.WARN,
        "3000-doctor.sandgate.invalid",
        "*.sandgate.invalid A 192.0.2.7",
    )


def test_a_trial_reports_what_went_wrong_and_changes_nothing_here() -> None:
    before = os.readlink("/proc/self/ns/net")

    def failing() -> None:
        raise OSError(1, "went wrong")

    assert trial(failing, namespaces=linux.CLONE_NEWNET) == "[Errno 1] went wrong"
    assert trial(lambda: os._exit(3)) == "ended with status 768"
    assert trial(lambda: None, namespaces=linux.CLONE_NEWNET) is None
    assert os.readlink("/proc/self/ns/net") == before


def test_the_report_fails_only_for_failures(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = ("a", ok("fine")), ("c", fail("broken", "repair"))
    middling = ("b", warn("meh", "improve"))
    assert report([good, middling], as_json=False) == 0
    assert report([good, middling, bad], as_json=False) == 1
    said = capsys.readouterr().out
    assert "fix: improve" in said
    assert "fix: repair" in said
    assert report([bad], as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"check": "c", "level": "fail", "detail": "broken", "fix": "repair"}
    ]


def test_all_checks_are_made_and_give_a_fix_where_something_is_wrong(
    settings: Settings, namespace: str
) -> None:
    findings = examine(settings)
    assert [name for name, _ in findings] == [name for name, _, _ in CHECKS]
    for _, finding in findings:
        says(finding, finding.level)
