import math

import pytest

from webai_api.errors import Conflict
from webai_api.limits import TTL_MAX
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, eventually, ids, listed, numbered, present, said
from webai_api.types import History, Session

__all__ = ["Expiry"]

SOON = 0.03  # seconds; short, and each test waits until it is over rather than for a time
SLACK = 5.0  # seconds between two calls on a loaded machine, at most


class Expiry:
    """When sessions expire, and what is left of them then: nothing."""

    async def test_a_new_session_does_not_expire(self, store: SessionStore) -> None:
        assert present(await store.append("s", numbered(1))).expires_at is None

    @pytest.mark.parametrize("ttl", [60, 0.5e6, TTL_MAX])
    async def test_ttl_counts_from_now(self, store: SessionStore, ttl: float) -> None:
        _expires_in(present(await store.append("s", numbered(1), ttl=ttl)), ttl)
        _expires_in(present(await store.read("s")), ttl)

    async def test_no_ttl_leaves_the_expiry(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(1), ttl=1000))
        for call in ([said("x")], []):
            assert present(await store.append("s", call)).expires_at == first.expires_at
        await store.append("s", [], metadata={"k": 1})
        await store.remove("s", ["i0"])
        assert present(await store.read("s")).expires_at == first.expires_at

    async def test_a_ttl_makes_the_life_longer_or_shorter(self, store: SessionStore) -> None:
        await store.append("s", numbered(1), ttl=1000)
        _expires_in(present(await store.append("s", [said("x")], ttl=5000)), 5000)
        _expires_in(present(await store.append("s", [said("y")], ttl=100)), 100)
        _expires_in(present(await store.append("s", [], ttl=2000)), 2000)
        _expires_in(present(await store.append("s", [], ttl=50)), 50)

    async def test_an_infinite_ttl_removes_the_expiry(self, store: SessionStore) -> None:
        for call in ([said("x")], []):
            await store.append("s", [], ttl=1000)
            assert present(await store.append("s", call, ttl=math.inf)).expires_at is None
            assert present(await store.read("s")).expires_at is None
        assert present(await store.append("new", numbered(1), ttl=math.inf)).expires_at is None

    async def test_a_renewal_changes_neither_version_nor_epoch(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(1)))
        for ttl in (1000, 2000, math.inf):
            session = present(await store.append("s", [], ttl=ttl))
            assert (session.version, session.epoch) == (first.version, first.epoch)

    async def test_reading_does_not_renew(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(1), ttl=1000))
        await store.read("s")
        await listed(store.sessions())
        assert present(await store.read("s")).expires_at == first.expires_at

    async def test_a_repeat_extends_the_expiry_and_does_nothing_else(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(2), ttl=1000))
        again = present(await store.append("s", numbered(2), ttl=5000))
        _expires_in(again, 5000)
        assert (again.version, again.epoch) == (first.version, first.epoch)
        assert present(await store.append("s", numbered(2), ttl=math.inf)).expires_at is None

    async def test_a_repeat_never_shortens_the_expiry(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(2), ttl=1000))
        assert present(await store.append("s", numbered(2), ttl=10)) == first
        assert present(await store.append("s", numbered(2))) == first
        lasting = present(await store.append("t", numbered(2)))
        assert present(await store.append("t", numbered(2), ttl=10)) == lasting

    async def test_a_refused_call_leaves_the_expiry(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(1), ttl=1000))
        with pytest.raises(Conflict):
            await store.append("s", [said("x")], expected=0, ttl=5000)
        assert present(await store.read("s")).expires_at == first.expires_at

    async def test_an_expired_session_is_not_there_any_more(self, store: SessionStore) -> None:
        await store.append("stays", numbered(1), ttl=1000)
        await _expired(store)
        assert await store.read("s") == History(None)
        assert await store.read("s", after=1, epoch=5, last=2) == History(None)
        assert not await store.remove("s", ["i0"])
        assert await store.delete("s") is False
        assert await listed(store.sessions()) == ["stays"]
        with pytest.raises(Conflict) as caught:
            await store.append("s", numbered(1), expected=1)
        assert (caught.value.actual, caught.value.missed) == (0, History(None))

    async def test_after_the_expiry_everything_is_fresh(self, store: SessionStore) -> None:
        old = await _expired(store)
        new = present(await store.append("s", [said("other content", "i1"), said("x", "x")], expected=0))
        assert new.version > old.version
        assert new.epoch != old.epoch
        assert (new.first_seq, new.last_seq, new.count) == (1, 2, 2)
        assert (new.metadata, new.expires_at) == ({}, None)
        assert await contents(store, "s") == ["i1", "x"]
        assert ids(await store.read("s", after=old.last_seq, epoch=old.epoch)) == ["i1", "x"]

    async def test_named_removals_are_forgotten_at_the_expiry(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        await store.remove("s", ["i0"], op_id="op")
        await store.append("s", [], ttl=SOON)
        await eventually(lambda: _absent(store))
        await store.append("s", numbered(3))
        assert (await store.remove("s", ["i1"], op_id="op")).ids == ("i1",)

    async def test_the_expiry_of_a_deleted_session_does_not_touch_the_next_one(self, store: SessionStore) -> None:
        await store.append("s", numbered(1), ttl=SOON)
        await store.delete("s")
        await store.append("s", [said("x", "x")])
        await store.append("clock", [], ttl=SOON)
        await eventually(lambda: _absent(store, "clock"))
        assert await contents(store, "s") == ["x"]

    async def test_a_renewed_session_outlives_its_first_expiry(self, store: SessionStore) -> None:
        await store.append("s", numbered(1), ttl=1)
        await store.append("s", [], ttl=1000)
        await store.append("t", numbered(1), ttl=1)
        await store.append("t", [], ttl=math.inf)
        await store.append("clock", [], ttl=1)
        await eventually(lambda: _absent(store, "clock"))
        assert await contents(store, "s") == ["i0"]
        assert await contents(store, "t") == ["i0"]

    async def test_the_shortest_ttl_is_no_error(self, store: SessionStore) -> None:
        await store.append("s", numbered(1), ttl=1e-9)
        await eventually(lambda: _absent(store))


def _expires_in(session: Session, ttl: float) -> None:
    """Check the expiry on the store's own clock: the caller's may be another."""
    assert session.expires_at is not None
    assert ttl - SLACK < session.expires_at - session.updated_at < ttl + SLACK


async def _absent(store: SessionStore, session_id: str = "s") -> bool:
    return (await store.read(session_id)).session is None


async def _expired(store: SessionStore) -> Session:
    """Let a session with all that a session has expire; return what it was."""
    await store.append("s", numbered(4), metadata={"title": "old"})
    old = present(await store.remove("s", ["i2"]))
    await store.append("s", [], ttl=SOON)
    await eventually(lambda: _absent(store))
    return old
