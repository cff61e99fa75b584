"""Who may use a node: API keys, the owners they stand for, and what each owner may have."""

from sandgate.accounts.keys import KeyRejected, hash_key, is_key, key_id, new_key
from sandgate.accounts.owners import (
    NO_QUOTA,
    OPERATOR,
    AccountError,
    Caller,
    KeyEntry,
    OwnerEntry,
    Owners,
    Quota,
)

__all__ = [
    "NO_QUOTA",
    "OPERATOR",
    "AccountError",
    "Caller",
    "KeyEntry",
    "KeyRejected",
    "OwnerEntry",
    "Owners",
    "Quota",
    "hash_key",
    "is_key",
    "key_id",
    "new_key",
]
