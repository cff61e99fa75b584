"""What a node remembers across restarts: its sandboxes, in SQLAlchemy models (SQLite by default).

The store is the truth about which sandboxes there should be; kernel state, ingress maps and
gateway tables are derived from it. It holds tokens, so its file is readable by its owner alone.
"""

from sandgate.store.database import ListQuery, Store, StoreError
from sandgate.store.records import (
    PAUSED_FILESYSTEM,
    PAUSED_FULL,
    Lifecycle,
    NetworkConfig,
    Note,
    NoteKind,
    SandboxRecord,
    SnapshotRecord,
)

__all__ = [
    "PAUSED_FILESYSTEM",
    "PAUSED_FULL",
    "Lifecycle",
    "ListQuery",
    "NetworkConfig",
    "Note",
    "NoteKind",
    "SandboxRecord",
    "SnapshotRecord",
    "Store",
    "StoreError",
]
