"""The embedded, durable store: one SQLite file, which several processes may share.

A call's way: `store` checks its arguments and hands it to one of two threads, `calls` carries it there and its answer
back, `worker` gives all that wait together one transaction (group commit), `verbs` does in it what the call asks for
and `log` what a reader does. `database` opens the file and words SQLite's errors; `schema.sql` has the tables.
"""

from webai_api.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
