"""Every key name is built here.

    session:ID                 the list of messages, as the guide names it
    {session:ID}:log  :h       its side keys: the tag is the whole list key, so all share a Cluster slot
    session@TENANT:ID          the same for a tenant
    {session:ID}:@NAMESPACE    the list of another namespace's entry of that id, in the session's slot; side keys follow
    sessions:NAMESPACE:BUCKET  (sessions@TENANT:...) the index of ids, for listing only

``%``, ``{`` and ``}`` in an id are percent-encoded, in a tenant ``:`` too: distinct addresses have distinct keys, and
no id can name another tenant's keys or a side key.
"""

from zlib import crc32

from webai_api.types import StoreOptions

__all__ = ["BUCKETS", "INDEX_BUCKETS", "PROBE", "bucket_of", "index_key", "session_keys"]

INDEX_BUCKETS = 8  # so that on a Cluster the index is spread over nodes
BUCKETS = range(INDEX_BUCKETS)

_ID = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_TENANT = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D", ":": "%3A"})

# `%` is always followed by a digit in a real id's key, so no session can have these.
PROBE = ("session:%probe", "{session:%probe}:log", "{session:%probe}:h", "sessions:%probe")


def session_keys(options: StoreOptions, session_id: str) -> tuple[str, str, str]:
    """Return the session's list, log and hash."""
    owner = "session" if options.tenant is None else f"session@{options.tenant.translate(_TENANT)}"
    base = f"{owner}:{session_id.translate(_ID)}"
    if options.namespace == "session":
        return base, f"{{{base}}}:log", f"{{{base}}}:h"
    base = f"{{{base}}}:@{options.namespace}"
    return base, f"{base}:log", f"{base}:h"


def index_key(options: StoreOptions, bucket: int) -> str:
    """Return one bucket of the index of this tenant and namespace."""
    owner = "sessions" if options.tenant is None else f"sessions@{options.tenant.translate(_TENANT)}"
    return f"{owner}:{options.namespace}:{bucket}"


def bucket_of(session_id: str) -> int:
    """Return the bucket that lists this id."""
    return crc32(session_id.encode()) % INDEX_BUCKETS
