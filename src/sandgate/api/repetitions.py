"""Creates that are asked for twice are carried out once: the header `Idempotency-Key`.

For a day a key stands for the request that it first came with. The same request gets the same
answer, also when the sandbox has ended meanwhile; one that comes while the first is under way
waits for it. Another request with the key is refused (422). A create that failed left nothing
behind, so its key is free again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ValidationError

from sandgate.accounts import OPERATOR
from sandgate.api.errors import ApiError
from sandgate.api.responses import SandboxAnswer
from sandgate.store import NoteKind, Store, StoreError

LIFETIME = timedelta(hours=24)
"""How long a key is remembered."""
CAPACITY = 10_000
"""Most keys that are remembered; the oldest go first."""
KEY_PATTERN = "^[a-z0-9-]{1,255}$"
"""What a key looks like (wire contract, 1.4)."""

_log = logging.getLogger(__name__)


class _Remembered(BaseModel):
    fingerprint: str
    answer: SandboxAnswer


@dataclass(frozen=True, slots=True)
class _Known:
    until: datetime
    what: _Remembered


class Repetitions:
    """The creates of the last day that had a key. Belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, _Known] | None = None
        """By name (:func:`_name`), the oldest first; read when first needed."""
        self._open: dict[str, tuple[str, asyncio.Task[SandboxAnswer]]] = {}

    async def once(
        self, owner: str, key: str, body: BaseModel, create: Callable[[], Awaitable[SandboxAnswer]]
    ) -> SandboxAnswer:
        """What `create` answers, or answered when `owner`'s `key` came with this `body` before.

        Raises ApiError if the body is another one, and whatever `create` raises.
        """
        fingerprint = _fingerprint(body)
        name = _name(owner, key)
        if name in self._open:
            asked, task = self._open[name]
            _require_same(asked, fingerprint, key)
            return await asyncio.shield(task)
        known = self._find(name)
        if known is not None:
            _require_same(known.fingerprint, fingerprint, key)
            return known.answer
        task = asyncio.ensure_future(self._create(name, fingerprint, create))
        self._open[name] = (fingerprint, task)
        task.add_done_callback(lambda _: self._open.pop(name))
        # A client that goes away does not stop what others may be waiting for.
        return await asyncio.shield(task)

    async def _create(
        self, name: str, fingerprint: str, create: Callable[[], Awaitable[SandboxAnswer]]
    ) -> SandboxAnswer:
        answer = await create()
        self._remember(name, _Remembered(fingerprint=fingerprint, answer=answer))
        return answer

    def _find(self, name: str) -> _Remembered | None:
        known = self._all().get(name)
        return None if known is None or known.until < datetime.now(UTC) else known.what

    def _remember(self, name: str, what: _Remembered) -> None:
        keys, now = self._all(), datetime.now(UTC)
        keys.pop(name, None)
        keys[name] = _Known(now + LIFETIME, what)
        outdated = [other for other, known in keys.items() if known.until < now]
        outdated += list(keys)[: max(0, len(keys) - len(outdated) - CAPACITY)]
        for old in outdated:
            keys.pop(old, None)
        try:
            self._store.write_notes(NoteKind.REPETITION, {name: what.model_dump_json().encode()})
            self._store.delete_notes(NoteKind.REPETITION, outdated)
        except StoreError as error:
            # The sandbox is there; only a restart of this process would forget the key.
            _log.error("an idempotency key was not written down: %s", error)

    def _all(self) -> dict[str, _Known]:
        if self._known is None:
            self._known = {}
            for name, note in self._store.notes(NoteKind.REPETITION).items():
                try:
                    what = _Remembered.model_validate_json(note.data)
                except ValidationError as error:
                    _log.error("a remembered create is damaged: %s", error.error_count())
                    continue
                self._known[name] = _Known(note.written_at + LIFETIME, what)
        return self._known


def _name(owner: str, key: str) -> str:
    """What an owner's key is remembered under: no key of another owner is called so."""
    if owner == OPERATOR:
        return key
    return f"{owner}:{hashlib.sha256(key.encode()).hexdigest()}"


def _fingerprint(body: BaseModel) -> str:
    """The same for the same settings, whatever the order they are written in."""
    text = json.dumps([type(body).__name__, body.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _require_same(first: str, second: str, key: str) -> None:
    if first != second:
        raise ApiError(
            422,
            f"the Idempotency-Key {key[:100]!r} was used with other settings before; "
            "use a new key for a new sandbox",
            error_code="idempotency_request_mismatch",
        )
