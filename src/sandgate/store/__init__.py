"""What a node remembers across restarts: its sandboxes, in SQLAlchemy models (SQLite by default).

The store is the truth about which sandboxes there should be; kernel state, ingress maps and
gateway tables are derived from it. It holds tokens, so its file is readable by its owner alone.
"""

from sandgate.store.database import ListQuery, Store, StoreError
from sandgate.store.records import NetworkConfig, Note, NoteKind, SandboxRecord

__all__ = [
    "ListQuery",
    "NetworkConfig",
    "Note",
    "NoteKind",
    "SandboxRecord",
    "Store",
    "StoreError",
]
