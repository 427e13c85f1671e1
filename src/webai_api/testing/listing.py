import itertools

import pytest

from webai_api.errors import SessionNotFound
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import eventually, listed, numbered, present, said

__all__ = ["Listing"]


class Listing:
    """What `SessionStore.sessions` yields."""

    async def test_an_empty_store_lists_nothing(self, store: SessionStore) -> None:
        assert await listed(store.sessions()) == []
        assert await listed(store.sessions(prefix="s")) == []

    async def test_every_session_is_listed_once_and_as_a_read_shows_it(self, store: SessionStore) -> None:
        for n in range(30):
            await store.append(f"s{n}", numbered(n % 3), metadata={"n": n}, ttl=1000)
        await store.append("s1", [said("more")])
        await store.remove("s2", ["i0"])
        await _listing_settles(store, {f"s{n}" for n in range(30)})
        found = [session async for session in store.sessions()]
        assert len(found) == 30
        for session in found:
            assert session == present(await store.read(session.id))

    async def test_newest_activity_comes_first_give_or_take_a_minute(self, store: SessionStore) -> None:
        for n in range(10):
            await store.append(f"s{n}", [])
        await store.append("s3", numbered(1))
        updated = [session.updated_at async for session in store.sessions()]
        assert len(updated) == 10
        assert all(newer > older - 60 for newer, older in itertools.pairwise(updated))

    async def test_deleted_sessions_are_not_listed(self, store: SessionStore) -> None:
        for session_id in "abc":
            await store.append(session_id, numbered(1))
        await store.delete("b")
        assert sorted(await listed(store.sessions())) == ["a", "c"]
        await store.append("b", [])
        await _listing_settles(store, {"a", "b", "c"})

    async def test_expired_sessions_are_not_listed(self, store: SessionStore) -> None:
        await store.append("a", numbered(1), ttl=0.03)
        await store.append("b", numbered(1), ttl=1000)
        await _listing_settles(store, {"b"})
        await store.append("a", numbered(1))
        await _listing_settles(store, {"a", "b"})

    async def test_sessions_without_items_are_listed(self, store: SessionStore) -> None:
        await store.append("created", [])
        await store.append("emptied", numbered(1))
        await store.remove("emptied", ["i0"])
        await _listing_settles(store, {"created", "emptied"})

    async def test_a_prefix_is_plain_text(self, store: SessionStore) -> None:
        named = [
            "a*b",
            "a*",
            "aXb",
            "ab",
            "a?c",
            "abc",
            "[ab]c",
            "a[b",
            "A",
            "a%",
            "a_b",
            "a\\b",
            "é",
            "e\u0301",
            "{a}",
        ]
        for session_id in named:
            await store.append(session_id, [])
        for prefix in (
            "",
            "a",
            "a*",
            "a?",
            "*",
            "?",
            "[",
            "[ab]",
            "a[",
            "A",
            "a%",
            "a_",
            "a\\",
            "é",
            "e",
            "{",
            "x",
            "%",
        ):
            expected = {session_id for session_id in named if session_id.startswith(prefix)}
            await _listing_settles(store, expected, prefix)

    async def test_pages_follow_one_another_without_gap_or_overlap(self, store: SessionStore) -> None:
        expected = {f"s{n}" for n in range(25)}
        for session_id in sorted(expected):
            await store.append(session_id, numbered(1))
        await store.append("other", [])
        await _listing_settles(store, expected, "s")
        found: list[str] = []
        after: str | None = None
        for _ in range(30):
            page: list[str] = []
            async for session in store.sessions(prefix="s", after=after):
                page.append(session.id)
                if len(page) == 4:
                    break
            if not page:
                break
            found += page
            after = page[-1]
        assert len(found) == 25
        assert set(found) == expected

    async def test_a_page_after_a_session_that_is_gone_is_an_error(self, store: SessionStore) -> None:
        await store.append("s", [])
        await store.append("gone", [])
        await store.delete("gone")
        for unknown in ("gone", "never"):
            with pytest.raises(SessionNotFound) as caught:
                await listed(store.sessions(after=unknown))
            assert caught.value.session_id == unknown

    async def test_sessions_deleted_while_one_lists_do_not_disturb(self, store: SessionStore) -> None:
        for n in range(10):
            await store.append(f"s{n}", [])
        seen = []
        async for session in store.sessions():
            seen.append(session.id)
            if len(seen) == 1:
                for n in range(10):
                    await store.delete(f"s{n}")
        assert len(set(seen)) == len(seen)
        assert await listed(store.sessions()) == []


async def _listing_settles(store: SessionStore, expected: set[str], prefix: str = "") -> None:
    """Wait until just *expected* is listed: a new session may take a second to appear."""

    async def settled() -> bool:
        found = await listed(store.sessions(prefix=prefix))
        assert len(found) == len(set(found))
        return set(found) == expected

    await eventually(settled)
