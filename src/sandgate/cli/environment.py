"""What the environment of a client must hold so that the official SDKs use this node. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from sandgate.cli.trust import OVERRIDING
from sandgate.supervisor.record import NodeRecord

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
MISLEADING = ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DEBUG")
"""Variables that keep the SDKs from using the node in spite of `E2B_DOMAIN`."""


def client_environment(
    record: NodeRecord, api_key: str | None, environment: Mapping[str, str]
) -> dict[str, str]:
    """The variables to set, given those that are set in `environment`.

    The trust anchors are left out for a node with the operator's own certificate, and `NO_PROXY`
    where no proxy is set or it covers the node already.
    """
    wanted = {"E2B_DOMAIN": record.domain}
    if api_key is not None:
        wanted["E2B_API_KEY"] = api_key
    if record.ca_bundle is not None and record.ca is not None:
        wanted["SSL_CERT_FILE"] = str(record.ca_bundle)
        wanted["REQUESTS_CA_BUNDLE"] = str(record.ca_bundle)
        if environment.get(OVERRIDING):
            wanted[OVERRIDING] = str(record.ca_bundle)
        # Node adds this to what it trusts anyway; with the others it replaces. Where something
        # is set already, that may be the machine's bundle, which must not be lost.
        extra = record.ca_bundle if environment.get("NODE_EXTRA_CA_CERTS") else record.ca
        wanted["NODE_EXTRA_CA_CERTS"] = str(extra)
    if proxies(environment):
        for name in ("NO_PROXY", "no_proxy"):
            present = [part.strip() for part in environment.get(name, "").split(",")]
            if "*" not in present and record.host not in present:
                # Libraries differ in whether a bare name covers the names below it.
                added = [part for part in present if part] + [record.host, f".{record.host}"]
                wanted[name] = ",".join(dict.fromkeys(added))
    return wanted


def proxies(environment: Mapping[str, str]) -> list[str]:
    """The proxy variables that are set."""
    return [name for proxy in _PROXIES for name in (proxy, proxy.lower()) if environment.get(name)]


def misleading(environment: Mapping[str, str]) -> list[str]:
    """Those of :data:`MISLEADING` that are set."""
    return [name for name in MISLEADING if environment.get(name)]


def exports(variables: Mapping[str, str]) -> str:
    """Shell commands that set `variables`, safe to evaluate whatever the values hold."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
