"""What can go wrong with a sandbox, as seen by whoever asked.

NodeError
├── SandboxNotFound      no such sandbox, or it has ended
├── SandboxEnding        the sandbox is being ended, and cannot be changed any more
├── AlreadyPaused        the sandbox is paused, or about to be
├── ChangeFailed         the sandbox could not be paused, resumed or kept; it is what it was
├── TemplateNotFound     no template has that name
├── SnapshotNotFound     no snapshot has that id or name
├── InvalidRequest       the settings asked for are not valid
├── LimitReached         the node is full, or what the owner may have is used up
├── NoSpace              the node's disk is full
├── NotReady             a part of the node is not up; nothing was done
├── StartFailed          the sandbox did not start, and is not left behind
├── NotApplied           a change could not be made everywhere; the state before it holds
└── EndPending           the sandbox is being ended, but is not gone yet
"""

from __future__ import annotations


class NodeError(Exception):
    """Base of all. The text is meant for the user."""


class SandboxNotFound(NodeError):
    """No such sandbox, or it has ended."""

    def __init__(self, sandbox_id: str, why: str | None = None) -> None:
        reason = "" if why is None else f": {why}"
        super().__init__(f"Sandbox {sandbox_id} not found{reason}")


class SandboxEnding(NodeError):
    """The sandbox is being ended, and cannot be changed any more."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__(f"Sandbox {sandbox_id} is being killed")


class AlreadyPaused(NodeError):
    """The sandbox is paused, or about to be."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__(f"Sandbox {sandbox_id} is already paused")


class ChangeFailed(NodeError):
    """The sandbox could not be paused, resumed or kept; it is what it was.

    `retryable`: trying again may help.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class TemplateNotFound(NodeError):
    """No template has that name."""


class SnapshotNotFound(NodeError):
    """No snapshot has that id or name."""


class InvalidRequest(NodeError):
    """The settings asked for are not valid. The text names the field, the value and the remedy."""


class LimitReached(NodeError):
    """The node is full, or what the owner may have is used up.

    `retry_after`: seconds after which there may be room. `repeat`: there will be, so that the
    client may ask again by itself.
    """

    def __init__(
        self, message: str, *, retry_after: int | None = None, repeat: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.repeat = repeat


class NoSpace(NodeError):
    """The node's disk is full."""


class NotReady(NodeError):
    """A part of the node is not up yet, or not at the moment; nothing was done."""


class StartFailed(NodeError):
    """The sandbox did not start, and is not left behind. `retryable`: trying again may help."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class NotApplied(NodeError):
    """A change could not be made everywhere; the state before it holds."""


class EndPending(NodeError):
    """The sandbox is being ended, but is not gone yet."""
