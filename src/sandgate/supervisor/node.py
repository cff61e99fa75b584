"""`sandgate serve`: everything a node needs, in the order in which it is needed."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sandgate.egress.gateway import upstream_servers
from sandgate.ingress.certificates import (
    CertificateError,
    Certificates,
    ensure_certificates,
    operator_certificates,
)
from sandgate.settings import Settings
from sandgate.supervisor.background import require_root
from sandgate.supervisor.build import build_id
from sandgate.supervisor.component import Child, end_stale
from sandgate.supervisor.components import OUTLIVED, Parts, components
from sandgate.supervisor.layout import Accounts, Layout
from sandgate.supervisor.logfile import is_log, rotate
from sandgate.supervisor.notify import notify
from sandgate.supervisor.ports import choose_port, open_listener
from sandgate.supervisor.preconditions import require_preconditions, require_programs
from sandgate.supervisor.record import NodeRecord, component_records, public_domain
from sandgate.supervisor.serving import Serving, find_serving
from sandgate.supervisor.status import probes
from sandgate.supervisor.supervisor import Ending, Phase, StartError, Supervisor
from sandgate.templates import TemplateError, load
from sandgate.templates.build import prune
from sandgate.templates.node_layer import prune_node_layers, write_node_layer

log = logging.getLogger("sandgate.supervisor")


def serve(settings: Settings) -> None:
    """Run a node until a signal ends it.

    Raises LayoutError, PortError or StartError, each with the remedy, if it cannot be started.
    """
    require_root("running a node")
    layout = Layout.of(settings)
    accounts = Accounts.of(settings.service_user)
    layout.prepare_data_dir()
    # What is made from here on is for its owner, unless a mode is given.
    os.umask(0o077)
    lock = layout.take_lock()
    try:
        previous = NodeRecord.read(layout.record)
        try:
            with ExitStack() as listeners:
                serving = find_serving(settings, layout, previous, listeners)
                if serving is None:
                    for name in end_stale(layout.pid_dir, OUTLIVED):
                        log.warning("ended %s, left by a supervisor that was killed", name)
                layout.prepare_run_dir(accounts.proxy)
                if serving is None:
                    layout.remove_sockets()
                record, parts = _prepare(settings, layout, accounts, previous, serving, listeners)
                ending = _run(layout, record, parts, listeners, previous is not None, serving)
        except BaseException:
            # With sandboxes of a killed supervisor still there, the next start takes over again.
            if previous is None and layout.run_dir.exists():
                shutil.rmtree(layout.run_dir)
            raise
        if ending is Ending.DOWN:
            shutil.rmtree(layout.run_dir)
    finally:
        os.close(lock)


def _prepare(
    settings: Settings,
    layout: Layout,
    accounts: Accounts,
    previous: NodeRecord | None,
    serving: Serving | None,
    listeners: ExitStack,
) -> tuple[NodeRecord, Parts]:
    if serving is not None:
        # What else is needed of the machine is in use, by the node's own components.
        require_programs()
        port = serving.https_port
    else:
        require_preconditions(settings)
        port = choose_port(
            (settings.listen, settings.ingress_address),
            settings.https_port,
            previous.https_port if previous else None,
        )
    certificates = _certificates(settings)
    try:
        resolvers = upstream_servers(settings.upstream_dns)
    except (OSError, ValueError) as error:
        raise StartError(str(error)) from error
    own = layout.supervisor()
    if own is None:
        raise StartError("this process is not found in /proc")
    if serving is not None:
        public, inner = serving.listeners
    else:
        public, inner = (
            listeners.enter_context(open_listener(address, port))
            for address in (settings.listen, settings.ingress_address)
        )
    record = NodeRecord(
        version=version("sandgate"),
        supervisor=own,
        phase="starting",
        domain=public_domain(settings.domain, port),
        https_port=port,
        listen=settings.listen,
        host=settings.domain,
        trusted=certificates.ca or settings.tls_cert or certificates.bundle,
        ca=certificates.ca,
        ca_bundle=certificates.bundle if certificates.ca else None,
        build=build_id(),
        managed="NOTIFY_SOCKET" in os.environ,
        listeners=(public.fileno(), inner.fileno()),
    )
    parts = Parts(
        settings=settings,
        layout=layout,
        accounts=accounts,
        api_key=layout.ensure_api_key(),
        https_port=port,
        domain=record.domain,
        certificates=certificates,
        upstream_dns=resolvers,
        node_layer=_node_layer(settings, certificates, alone=previous is None),
        public_listener=public.fileno(),
        inner_listener=inner.fileno(),
    )
    return record, parts


def _certificates(settings: Settings) -> Certificates:
    directory = settings.data_dir / "certificates"
    try:
        if settings.tls_cert is not None and settings.tls_key is not None:
            found = operator_certificates(
                directory, settings.domain, settings.tls_cert, settings.tls_key
            )
        else:
            found = ensure_certificates(
                directory, settings.domain, (settings.listen, settings.ingress_address)
            )
    except CertificateError as error:
        raise StartError(str(error)) from error
    # Clients of all users read the authority there; the keys are for root alone.
    directory.chmod(0o755)
    return found


def _node_layer(settings: Settings, certificates: Certificates, *, alone: bool) -> Path:
    """`alone`: no sandbox of an earlier run can be using replaced templates."""
    try:
        if alone:
            prune_node_layers(settings.data_dir)
            if not (settings.data_dir / "templates").is_symlink():
                prune(settings.data_dir)
        base = load(settings.data_dir).get("base")
        if base is None:
            raise StartError(
                f"no template `base` in {settings.data_dir / 'templates'}; "
                "run `sandgate template build` (or `make install`)"
            )
        ca_pem = certificates.ca.read_bytes() if certificates.ca else None
        return write_node_layer(settings.data_dir, settings.domain, ca_pem, base)
    except TemplateError as error:
        raise StartError(str(error)) from error


def _run(
    layout: Layout,
    record: NodeRecord,
    parts: Parts,
    listeners: ExitStack,
    took_over: bool,
    serving: Serving | None,
) -> Ending:
    _raise_open_files()
    reporter = _Reporter(layout, record, listeners)
    ready = dict(probes(layout, record))
    try:
        parts_to_run = components(parts, ready)
    except ValueError as error:
        raise StartError(str(error)) from error
    return Supervisor(
        parts_to_run,
        layout.pid_dir,
        took_over=took_over,
        predecessors={} if serving is None else serving.components,
        on_change=reporter.changed,
        on_tick=reporter.tick,
        finally_ready=ready["https"],
    ).run()


def _raise_open_files() -> None:
    """Every connection takes descriptors; the soft limit of a login shell is far too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True)
class _Reporter:
    """Keeps the record current, tells the service manager, bounds the log, stops listening."""

    layout: Layout
    record: NodeRecord
    listeners: ExitStack
    logging_to_file: bool = False
    serving: bool = False
    """Has the node been ready?"""
    told_ready: bool = False
    """Has the service manager taken that? It waits for minutes if it was too busy to."""

    def __post_init__(self) -> None:
        self.logging_to_file = is_log(2, self.layout.log)

    def changed(self, phase: Phase, children: Sequence[Child]) -> None:
        rows = [
            (child.component.name, None if child.waiting else child.process, child.restarts)
            for child in children
        ]
        record = self.record.model_copy(
            update={"phase": str(phase), "components": component_records(rows)}
        )
        _despite_full_disk(lambda: record.write(self.layout.record))
        if phase is Phase.READY and not self.serving:
            self.serving = True
            log.info("ready: https://api.%s", record.domain)
            self._tell_ready()
        elif phase is Phase.STOPPING:
            self.listeners.close()  # nobody is to wait for an answer that will not come
            notify("STOPPING=1")

    def _tell_ready(self) -> None:
        self.told_ready = notify(f"READY=1\nSTATUS=serving https://api.{self.record.domain}")

    def tick(self) -> None:
        if not self.told_ready:
            self._tell_ready()
        if self.logging_to_file:
            _despite_full_disk(lambda: rotate(self.layout.log))


def _despite_full_disk(action: Callable[[], object]) -> None:
    """A node must not go down because its own books cannot be kept."""
    try:
        action()
    except OSError as error:
        log.error("%s", error)
