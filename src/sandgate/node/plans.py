"""From what a user asked for to what the parts of the node are told. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sandgate.accounts import Caller
from sandgate.envd.config import ENVD_VERSION, EnvdConfig
from sandgate.ingress.routes import parse_https_ports, parse_mask
from sandgate.node.errors import InvalidRequest, LimitReached, StartFailed
from sandgate.node.identifiers import new_sandbox_id, new_token
from sandgate.node.ports import GATE_ERRORS
from sandgate.node.sandbox import CreateRequest, LiveSandbox
from sandgate.node.states import State
from sandgate.policy import EgressPolicy, Mode, PolicyError, parse_policy
from sandgate.runtime.client import CapacityError, LauncherError
from sandgate.runtime.protocol import SandboxSpec
from sandgate.settings import Settings
from sandgate.store import Lifecycle, NetworkConfig, SandboxRecord, SnapshotRecord, StoreError


def network_policy(network: NetworkConfig, internet: bool | None) -> EgressPolicy:
    """The egress policy that the settings stand for. Raises InvalidRequest."""
    try:
        return parse_policy(
            network.allow_out,
            network.deny_out,
            internet=internet is not False,
            dns_servers=network.dns_servers,
            mode=Mode(network.mode or Mode.ENFORCE),
        )
    except PolicyError as error:
        raise InvalidRequest(str(error)) from error


def check_ingress(network: NetworkConfig) -> None:
    """Raises InvalidRequest if there is a host mask or an HTTPS port that means nothing."""
    try:
        if network.mask_request_host is not None:
            parse_mask(network.mask_request_host)
        parse_https_ports(network.https_ports or ())
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def moment_in(seconds: int, settings: Settings) -> datetime:
    """The moment `seconds` from now. Raises InvalidRequest if no sandbox may live that long."""
    longest = settings.max_timeout
    if seconds > longest:
        raise InvalidRequest(
            f"timeout {seconds} is longer than this node allows; ask for at most {longest} "
            "seconds (max_timeout)"
        )
    return datetime.now(UTC) + timedelta(seconds=seconds)


def new_record(
    request: CreateRequest,
    settings: Settings,
    template: str,
    end_at: datetime,
    snapshot: SnapshotRecord | None = None,
) -> SandboxRecord:
    """A sandbox that starts now, with a name and tokens of its own."""
    private = request.network.allow_public_traffic is False
    return SandboxRecord(
        sandbox_id=new_sandbox_id(),
        template=template,
        state=State.RUNNING,
        started_at=datetime.now(UTC),
        end_at=end_at,
        cpu_count=settings.cpu_count,
        memory_mb=settings.memory_mb,
        disk_mb=settings.disk_mb if snapshot is None else snapshot.disk_mb,
        max_pids=settings.max_pids,
        metadata=request.metadata,
        env=request.env,
        network=request.network,
        internet=request.internet,
        envd_version=ENVD_VERSION,
        envd_token=new_token() if request.secure else None,
        traffic_token=new_token() if private else None,
        lifecycle=Lifecycle(
            timeout=request.timeout,
            auto_pause=request.auto_pause,
            auto_pause_memory=request.auto_pause_memory,
            auto_resume=request.auto_resume,
        ),
        origin=None if snapshot is None else snapshot.snapshot_id,
        owner=request.caller.owner,
    )


def fork_request(record: SandboxRecord, caller: Caller, seconds: int) -> CreateRequest:
    """What makes a sandbox like this one."""
    return CreateRequest(
        caller=caller,
        template=record.template,
        timeout=seconds,
        network=record.network,
        internet=record.internet,
        metadata=record.metadata,
        env=record.env,
        secure=record.envd_token is not None,
        auto_pause=record.lifecycle.auto_pause,
        auto_pause_memory=record.lifecycle.auto_pause_memory,
        auto_resume=record.lifecycle.auto_resume,
    )


def launch_spec(record: SandboxRecord, policy: EgressPolicy, *, kept: bool = False) -> SandboxSpec:
    """What the launcher is told. `kept`: it starts on the disk that is kept under its name."""
    return SandboxSpec(
        sandbox_id=record.sandbox_id,
        template=record.template,
        cpu_count=record.cpu_count,
        memory_mb=record.memory_mb,
        disk_mb=record.disk_mb,
        max_pids=record.max_pids,
        policy=policy,
        kept=kept,
    )


def envd_config(record: SandboxRecord) -> EnvdConfig:
    """What the sandbox's daemon is told."""
    return EnvdConfig(
        sandbox_id=record.sandbox_id,
        template_id=record.template,
        access_token=record.envd_token,
        env=dict(record.env),
    )


def start_error(error: BaseException, sandbox: LiveSandbox) -> BaseException:
    """What the caller is told of `error`, which kept `sandbox` from starting."""
    if isinstance(error, CapacityError):
        return LimitReached(f"the machine has no room for another sandbox: {error}")
    if isinstance(error, (LauncherError, StoreError, StartFailed, *GATE_ERRORS)):
        # A sandbox that is still being taken down must not be multiplied by repetitions.
        gone = sandbox.state is State.ENDED
        retryable = isinstance(error, LauncherError) and error.retryable and gone
        return StartFailed(f"the sandbox could not be started: {error}", retryable=retryable)
    return error
