"""Checks of the network: what the kernel can do, and what of this machine would be in the way."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from contextlib import closing
from ipaddress import IPv4Address

from sandgate.cli.doctor.finding import Finding, fail, ok, warn
from sandgate.cli.doctor.trial import trial
from sandgate.egress.gateway import upstream_servers
from sandgate.guard import AddressGuard
from sandgate.network import (
    HostNetwork,
    Links,
    NetworkConfig,
    foreign_forward_drop,
    foreign_input_drop,
)
from sandgate.network.config import INTERFACE_PREFIX
from sandgate.policy import EgressPolicy, parse_policy
from sandgate.runtime import linux
from sandgate.settings import Settings
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.ports import PortError, choose_port, require_local
from sandgate.supervisor.preconditions import range_in_use
from sandgate.supervisor.record import NodeRecord, running_node

_MIN_HAPROXY = (2, 4)


def nftables(settings: Settings) -> Finding:
    """Do our rules load, with all that they use, and can a sandbox be linked?"""

    def attempt() -> None:
        network = HostNetwork(network_config(settings))
        network.setup()
        with closing(Links(network.config.links, linux.mount_proc)) as links:
            namespace = links.create(0)
        network.apply(0, EgressPolicy())
        network.apply(0, parse_policy(["*.example.com", "192.0.2.0/24"], ["0.0.0.0/0"]))
        os.close(namespace)
        network.teardown()

    problem = trial(attempt, namespaces=linux.CLONE_NEWNET)
    if problem is None:
        return ok("rules, transparent proxying and a sandbox's link work (tried apart)")
    return fail(
        f"the kernel refuses the network of a sandbox: {problem}",
        "modprobe -a nf_tables nft_tproxy nft_socket nft_fib_inet nft_reject_inet nft_masq "
        "nft_log nfnetlink_log nft_limit nf_conntrack nf_conntrack_netlink veth",
    )


def other_firewalls(_settings: Settings) -> Finding:
    """Would another table's drop policy stop sandboxes?"""
    try:
        forward, incoming = foreign_forward_drop(), foreign_input_drop()
    except OSError as error:
        return warn(f"cannot list the chains of other firewalls: {error}", "run this as root")
    links = f"{INTERFACE_PREFIX}+"
    fixes = []
    if forward:
        fixes += [f"iptables -I FORWARD -{way} {links} -j ACCEPT" for way in "io"]
    if incoming:
        fixes.append(f"iptables -I INPUT -i {links} -j ACCEPT")
    if not fixes:
        return ok("no other firewall drops forwarded packets by default")
    return warn(
        f"{', '.join(forward + incoming)} drops by default; sandboxes would reach nothing",
        " && ".join(fixes) + " (what sandboxes may reach stays decided by Sandgate)",
    )


def haproxy(_settings: Settings) -> Finding:
    """Installed, new enough, with Lua?"""
    try:
        said = subprocess.run(
            ["haproxy", "-vv"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except FileNotFoundError:
        return fail("HAProxy is not installed", "apt-get install haproxy")
    except (OSError, subprocess.TimeoutExpired) as error:
        return fail(f"HAProxy does not run: {error}", "apt-get install --reinstall haproxy")
    return judge_haproxy(said)


def judge_haproxy(said: str) -> Finding:
    """The finding for what `haproxy -vv` printed."""
    version = re.search(r"version (\d+)\.(\d+)(\S*)", said)
    if version is None:
        return fail("cannot tell HAProxy's version", "apt-get install --reinstall haproxy")
    text = f"HAProxy {version[1]}.{version[2]}{version[3]}"
    if (int(version[1]), int(version[2])) < _MIN_HAPROXY:
        return fail(f"{text} is older than 2.4", "install HAProxy 2.4 or newer (Debian 12 has 2.6)")
    for feature, needed in (("Lua", "Built with Lua"), ("TLS", "Built with OpenSSL")):
        if needed not in said:
            return fail(f"{text} is built without {feature}", "install the distribution's haproxy")
    return ok(f"{text} with Lua")


def port(settings: Settings) -> Finding:
    """Is the port of the HTTPS entry free, or ours?"""
    record = _running(settings)
    if record is not None:
        return ok(f"{record.listen}:{record.https_port} is served by this node")
    try:
        require_local(settings.listen)
        chosen = choose_port((settings.listen, settings.ingress_address), settings.https_port)
    except PortError as error:
        problem, _, fix = str(error).rpartition("; ")
        return fail(problem, fix)
    if settings.https_port is None and chosen != 443:
        return warn(
            f"443 is in use: the node will listen on {chosen} and carry it in its domain",
            "stop what listens on 443 (see `ss -ltnp sport = :443`), or leave it so",
        )
    return ok(f"{settings.listen}:{chosen} is free")


def address_range(settings: Settings) -> Finding:
    """Is the sandboxes' range unknown to this machine otherwise?"""
    try:
        problem = range_in_use(settings)
    except OSError as error:
        return warn(f"cannot list routes: {error}", "run this as root")
    if problem is not None:
        detail, _, fix = problem.rpartition("; ")
        return fail(detail, fix)
    return ok(f"{settings.address_range} is not in use here")


def resolvers(settings: Settings) -> Finding:
    """Does the gateway have somebody to ask?"""
    try:
        found = upstream_servers(settings.upstream_dns)
    except (OSError, ValueError) as error:
        return fail(str(error), "set upstream_dns, for example to your provider's resolver")
    source = "upstream_dns" if settings.upstream_dns else "/etc/resolv.conf"
    return ok(f"{source} names {', '.join(map(str, found))}")


def name_resolution(settings: Settings) -> Finding:
    """Do sandbox URLs resolve for programs of this machine?"""
    name = f"3000-doctor.{settings.domain}"
    wanted = _entry_addresses(settings)
    try:
        answers = socket.getaddrinfo(name, 443, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        found, problem = set(), f"{name} does not resolve ({error.strerror or error})"
    else:
        found = {IPv4Address(answer[4][0]) for answer in answers}
        problem = f"{name} resolves to {', '.join(map(str, sorted(found)))}"
    if found and (not wanted or found & wanted):
        return ok(problem)
    if settings.domain.endswith(".localhost"):
        return warn(
            f"{problem}: curl, browsers and the Python SDK manage, Node and `requests` do not",
            "apt-get install libnss-myhostname",
        )
    target = settings.listen if wanted else "this machine's address"
    return warn(
        f"{problem}, not to the node",
        f"add DNS records: {settings.domain} A {target} and *.{settings.domain} A {target}",
    )


def _entry_addresses(settings: Settings) -> set[IPv4Address]:
    """Where names must lead; empty if that cannot be told (the node listens everywhere)."""
    return set() if settings.listen.is_unspecified else {settings.listen}


def _running(settings: Settings) -> NodeRecord | None:
    layout = Layout.of(settings)
    try:
        return running_node(layout)[1]
    except PermissionError:
        return None


def network_config(settings: Settings) -> NetworkConfig:
    """The network of a node with these settings, as far as it is known without one."""
    guard = AddressGuard(settings.address_range, settings.internal_allow)
    return NetworkConfig(
        sandboxes=settings.address_range,
        ingress_address=settings.ingress_address,
        https_port=settings.https_port or 443,
        gateway_address=settings.gateway_address,
        gateway_port=15001,
        closed=guard.closed,
        gateway_uid=os.getuid(),
    )
