"""The host's side of all sandboxes' network: addresses, routing and rules."""

from __future__ import annotations

import errno
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from types import MappingProxyType

from sandgate.network import actions as do
from sandgate.network import (
    chains,
    claim,
    conntrack,
    flows,
    listing,
    nftables,
    residue,
    ruleset,
    silence,
    sockdiag,
    sysctl,
)
from sandgate.network import rtnetlink as rt
from sandgate.network.config import (
    FIRST_INDEX,
    HOST_ADDRESS,
    INTERFACE_PREFIX,
    LINK_GROUP,
    NetworkConfig,
)
from sandgate.network.limits import SHORT_LIVED, counts
from sandgate.network.netlink import Message, NetlinkError, NetlinkSocket
from sandgate.network.ranges import covers
from sandgate.network.refusals import TOLD
from sandgate.network.tightening import Cutter, Inside
from sandgate.policy import EgressPolicy

_TABLE = nftables.Table(ruleset.TABLE)
"""On the host and, with other content, in each sandbox's namespace."""

_ROUTING = 0x5347
"""Number of the routing table and priority of the routing rule that serve marked packets."""


_NOBODY: Mapping[int, EgressPolicy] = MappingProxyType({})

_NAME = re.compile(rf"{INTERFACE_PREFIX}(\d+)")

_ICMP_UNREACHABLE = 1 << 3
"""Bit of ICMP's destination unreachable in `icmp_ratemask`."""

_INHERITED, _LOOK = 2.0, 0.01
"""Seconds that a table may stay owned after its owner's death, and between attempts."""


class HostNetwork:
    """One node's network, in the network namespace where :meth:`setup` was called.

    For a single thread. The sockets it holds have the host's powers over the network: a process
    forked from this one for a sandbox must close all descriptors that it does not know.
    """

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config
        self._route: NetlinkSocket | None = None
        self._netfilter: NetlinkSocket | None = None
        self._diag: NetlinkSocket | None = None
        self._applied: dict[int, ruleset.SandboxRules] = {}
        self._cutter = Cutter()

    def setup(self, running: Mapping[int, EgressPolicy] = _NOBODY) -> None:
        """Make the table, addresses and routing of the node; replaces what an earlier run left.

        `running` are the policies of the slots that an earlier run left sandboxes in. They are in
        force at the instant in which the old rules go, so that no packet meets any other.

        Raises OSError (:class:`~sandgate.network.netlink.NetlinkError` where the kernel refused),
        and :class:`~sandgate.network.claim.NamespaceInUseError` where another node runs; then
        nothing was changed.
        """
        route, netfilter = self._sockets()
        comment = listing.read_comment(netfilter, ruleset.TABLE)
        claim.refuse_claimed(comment)
        before = _settings_before(comment)
        words = f"{sysctl.encode(before)} {claim.word()}"
        fixed = chains.base_chains(self.config)
        silent = silence.silent(fixed)
        if comment is not None:
            _take_over(comment, lambda: silence.begin(netfilter))
        _take_over(comment, lambda: self._create_table(netfilter, words, silent, running))
        silence.end(netfilter, fixed)
        rule = (self.config.sandboxes, ruleset.GATEWAY_MARK, _ROUTING, _ROUTING)
        route.execute(
            [
                rt.link_up(rt.LOOPBACK_INDEX),
                *(rt.add_address(rt.LOOPBACK_INDEX, own) for own in self._own_addresses()),
                rt.add_everything_local(_ROUTING),
            ]
        )
        _tolerating(errno.EEXIST, route, rt.add_mark_rule(*rule))
        sysctl.write("net.ipv4.ip_forward", "1")
        unlimited = int(before["net.ipv4.icmp_ratemask"]) & ~_ICMP_UNREACHABLE
        sysctl.write("net.ipv4.icmp_ratemask", str(unlimited))
        for name in filter(sysctl.exists, flows.ACCOUNTING):
            sysctl.write(name, "1")

    def teardown(self) -> None:
        """Undo :meth:`setup`, also that of a process that died; cuts off remaining sandboxes.

        Safe to repeat. Raises OSError, and
        :class:`~sandgate.network.claim.NamespaceInUseError` if the node is another process that
        still runs; then nothing was undone.
        """
        route, netfilter = self._sockets()
        try:
            line = listing.read_comment(netfilter, ruleset.TABLE)
            claim.refuse_claimed(line)
            _take_over(line, lambda: nftables.commit(netfilter, [_TABLE.create()]))
            _tolerating(errno.ENODEV, route, rt.delete_group(LINK_GROUP))
            for name, value in sysctl.decode(line or "").items():
                sysctl.write(name, value)
            rule = (self.config.sandboxes, ruleset.GATEWAY_MARK, _ROUTING, _ROUTING)
            _tolerating(errno.ENOENT, route, rt.delete_mark_rule(*rule))
            _tolerating(errno.ESRCH, route, rt.delete_everything_local(_ROUTING))
            for own in self._own_addresses():
                delete = rt.delete_address(rt.LOOPBACK_INDEX, own)
                _tolerating(errno.EADDRNOTAVAIL, route, delete)
            nftables.commit(netfilter, [_TABLE.delete()])
            self._applied.clear()
        finally:
            self.close()

    def close(self) -> None:
        """Close the sockets and leave everything in place. Safe to repeat."""
        for held in (self._route, self._netfilter, self._diag):
            if held is not None:
                held.close()
        self._route = self._netfilter = self._diag = None

    def address(self, slot: int) -> IPv4Address:
        """The address of the sandbox in `slot`. Raises ValueError outside the range."""
        return self.config.address(slot)

    def apply(self, slot: int, policy: EgressPolicy) -> None:
        """Let the new sandbox in `slot` reach what `policy` admits, and nothing else from now on.

        All or nothing; on an error what held before still holds.
        """
        self._cutter.begin(slot)
        self._apply(slot, self._rules(slot, policy))

    def change(self, slot: int, pid: int, pidfd: int, policy: EgressPolicy) -> None:
        """The same for a sandbox that has a policy. `pid` is a process in it, `pidfd` its pidfd.

        It holds for the next packet of connections that are open, too: each packet is judged in
        both directions. What is open by address and may not be any more is ended.
        """
        rules = self._rules(slot, policy)
        if covers(rules.reachable, self._before(slot).reachable):
            self._apply(slot, rules)
            return
        self._cutter.around(
            Inside(slot, pid, pidfd, self.address(slot)),
            self._diag_socket(),
            lambda address: policy.decide(address).allowed,
            lambda: self._apply(slot, rules),
        )

    def _apply(self, slot: int, rules: ruleset.SandboxRules) -> None:
        if messages := list(_replace(self._before(slot), rules)):
            nftables.commit(self._sockets()[1], messages)
        self._applied[slot] = rules

    def remove(self, slot: int) -> None:
        """Take away all that :meth:`apply` gave, and forget the sandbox's connections.

        Safe whatever exists of the slot. The link goes with the namespace.
        """
        address = self.address(slot)
        netfilter = self._sockets()[1]
        rules = self._applied.get(slot)
        if rules is not None:
            nftables.commit(netfilter, [*_delete_elements(rules), *_delete_chains(rules)])
            del self._applied[slot]
        conntrack.forget(netfilter, do.saddr_mark(address))

    def untold(self) -> dict[int, int]:
        """How many refusals of each slot were not told of, in the last minute or for longer.

        Raises OSError.
        """
        counted: Counter[int] = Counter()
        for told in TOLD.values():
            found = listing.read_meter(self._sockets()[1], ruleset.TABLE, told.name)
            for name, count in found.items():
                if (match := _NAME.fullmatch(name)) is not None:
                    counted[int(match[1])] += count
        return counted

    def cut(self, slot: int) -> int:
        """End the connections that processes of the host have into the sandbox in `slot`.

        Those that the sandbox made stay, also where they lead to the gateway: their end on the
        host has the address of whom the sandbox called. Returns how many there were; raises
        OSError.
        """
        return sockdiag.cut(self._diag_socket(), HOST_ADDRESS, self.address(slot))

    def callers(self, slot: int, port: int) -> int:
        """How many connections processes of the host have open to a port of the sandbox in `slot`.

        Raises OSError.
        """
        return sockdiag.open_to(self._diag_socket(), HOST_ADDRESS, self.address(slot), port)

    def _diag_socket(self) -> NetlinkSocket:
        if self._diag is None:
            self._diag = NetlinkSocket(sockdiag.NETLINK_SOCK_DIAG)
        return self._diag

    def slots(self) -> set[int]:
        """The slots whose link exists now, whoever made it. Raises OSError."""
        slots = set()
        for link in self._sockets()[0].dump(rt.list_links()):
            index, name = rt.index_and_name(link)
            match = _NAME.fullmatch(name)
            if match is not None and index == FIRST_INDEX + int(match[1]):
                slots.add(int(match[1]))
        return slots

    def has_table(self) -> bool:
        """Is there a table of a node in this namespace? Raises OSError."""
        return listing.read_comment(self._sockets()[1], ruleset.TABLE) is not None

    def slots_with_rules(self) -> set[int]:
        """The slots that the table has anything of, whoever put it there. Raises OSError."""
        netfilter = self._sockets()[1]
        if not self.has_table():
            return set()
        return residue.slots_with_rules(netfilter, self.config)

    def purge(self, slot: int) -> None:
        """Take away what :meth:`slots_with_rules` found of `slot`. Raises OSError."""
        residue.purge(self._sockets()[1], self.config, slot)
        self._applied.pop(slot, None)

    def delete_link(self, slot: int) -> None:
        """Delete the link of `slot`, if there is one. Raises OSError."""
        delete = rt.delete_link(FIRST_INDEX + slot)
        _tolerating(errno.ENODEV, self._sockets()[0], delete)

    def _sockets(self) -> tuple[NetlinkSocket, NetlinkSocket]:
        if self._route is None:
            self._route = NetlinkSocket(rt.NETLINK_ROUTE)
        if self._netfilter is None:
            self._netfilter = NetlinkSocket(nftables.NETLINK_NETFILTER)
        return self._route, self._netfilter

    def _own_addresses(self) -> tuple[IPv4Address, ...]:
        return (self.config.ingress_address, self.config.gateway_address, HOST_ADDRESS)

    def _rules(self, slot: int, policy: EgressPolicy) -> ruleset.SandboxRules:
        return ruleset.sandbox_rules(self.config, slot, policy, self._before(slot))

    def _before(self, slot: int) -> ruleset.SandboxRules:
        return self._applied.get(slot, ruleset.NO_RULES)

    def _create_table(
        self,
        netfilter: NetlinkSocket,
        comment: str,
        fixed: Sequence[nftables.Chain],
        running: Mapping[int, EgressPolicy],
    ) -> None:
        applied = {
            slot: ruleset.sandbox_rules(self.config, slot, policy)
            for slot, policy in running.items()
        }
        content = [
            *_TABLE.create_range_set(ruleset.closed_set(self.config)),
            *(_TABLE.create_set(named) for named in (*ruleset.SETS, *counts(self.config.shares))),
            _TABLE.create_timeouts(SHORT_LIVED),
            *(_TABLE.create_chain(chain) for chain in fixed),
            *(message for chain in fixed for message in _TABLE.add_rules(chain)),
            *(part for rules in applied.values() for part in _replace(ruleset.NO_RULES, rules)),
        ]
        replace = [_TABLE.create(), _TABLE.delete()]
        owned = _TABLE.create(flags=nftables.OWNED, comment=comment)
        try:
            nftables.commit(netfilter, [*replace, owned, *content])
        except NetlinkError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            # Before Linux 6.9 a table can be lost to another program's `nft flush ruleset`.
            nftables.commit(netfilter, [*replace, _TABLE.create(comment=comment), *content])
        self._applied = applied


def _settings_before(comment: str | None) -> dict[str, str]:
    """The host's own settings: those that a table left by an earlier run remembers, if any."""
    remembered = sysctl.decode(comment or "")
    # In this order they are restored: the kernel changes accept_redirects with ip_forward.
    names = (
        "net.ipv4.ip_forward",
        "net.ipv4.conf.all.accept_redirects",
        "net.ipv4.icmp_ratemask",
    )
    before = {name: remembered.get(name) or sysctl.read(name) for name in names}
    for name in filter(sysctl.exists, flows.ACCOUNTING):
        before[name] = remembered.get(name) or sysctl.read(name)
    return before


def _take_over(comment: str | None, change: Callable[[], None]) -> None:
    """Make a change to the table, which had this comment (None: there was no table).

    A launcher that died in the middle of a fork leaves a child which owns the table until it
    closes what it inherited. Raises NamespaceInUseError if the owner stays, OSError.
    """
    deadline = time.monotonic() + _INHERITED
    while True:
        try:
            change()
        except NetlinkError as error:
            if error.errno != errno.EPERM or comment is None:
                raise
            if time.monotonic() > deadline:
                raise claim.in_use() from None
            time.sleep(_LOOK)
        else:
            return


def _replace(before: ruleset.SandboxRules, rules: ruleset.SandboxRules) -> Iterator[Message]:
    """What turns the one set of rules into the other."""
    yield from _add_chains(before, rules)
    if rules.ranges is not None and rules.ranges != before.ranges:
        yield from _TABLE.add_ranges(rules.ranges)
        if before.ranges is not None:
            yield _TABLE.empty_set(before.ranges.name)
    yield from _delete_elements(before, keep=rules.elements)
    present = set(before.elements)
    for element in rules.elements:
        if element not in present:
            yield from _TABLE.add_element(element)
    if not rules.chains:
        yield from _delete_chains(before)


def _add_chains(before: ruleset.SandboxRules, rules: ruleset.SandboxRules) -> Iterator[Message]:
    """Chains and the sets that they use. Of those that are there the first rules are the same."""
    for name in rules.sets[len(before.sets) :]:
        yield _TABLE.create_set(nftables.NamedSet(name, nftables.Kind.RANGES))
    there = {chain.name: len(chain.rules) for chain in before.chains}
    for chain in rules.chains:
        if chain.name not in there:
            yield _TABLE.create_chain(chain)
        yield from _TABLE.add_rules(chain, after=there.get(chain.name, 0))


def _delete_elements(
    rules: ruleset.SandboxRules, keep: tuple[nftables.Element, ...] = ()
) -> Iterator[Message]:
    kept = set(keep)
    for element in rules.elements:
        if element not in kept:
            yield from _TABLE.delete_element(element)


def _delete_chains(rules: ruleset.SandboxRules) -> Iterator[Message]:
    """Chains and the sets that they use; no element may lead to them any more."""
    for chain in rules.chains:
        yield _TABLE.delete_chain(chain.name)
    for name in rules.sets:
        yield _TABLE.delete_set(name)


def _tolerating(code: int, socket: NetlinkSocket, message: Message) -> None:
    """Send `message`; the error `code` means that there is nothing to do."""
    try:
        socket.execute([message])
    except NetlinkError as error:
        if error.errno != code:
            raise
