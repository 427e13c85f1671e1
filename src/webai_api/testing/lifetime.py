import asyncio

import pytest

from webai_api.errors import StoreError
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, listed, numbered, said

__all__ = ["Lifetime"]


class Lifetime:
    """One store, many event loops, one end."""

    async def test_a_store_is_a_session_store(self, store: SessionStore) -> None:
        assert isinstance(store, SessionStore)
        assert isinstance(store.with_options(tenant="t"), SessionStore)

    async def test_a_closed_store_raises_and_says_why(self, store: SessionStore) -> None:
        await store.append("s", numbered(1))
        await store.aclose()
        await _is_closed(store)

    async def test_a_store_that_was_never_used_can_be_closed(self, store: SessionStore) -> None:
        await store.aclose()
        await _is_closed(store)

    async def test_closing_twice_is_harmless(self, store: SessionStore) -> None:
        await store.append("s", numbered(1))
        await store.aclose()
        await store.aclose()
        await store.with_options(tenant="t").aclose()

    async def test_views_share_the_closing(self, store: SessionStore) -> None:
        view = store.with_options(tenant="t")
        await view.append("s", numbered(1))
        await view.aclose()
        await _is_closed(store)
        await _is_closed(view)

    async def test_closing_while_calls_run_ends_each_of_them(self, store: SessionStore) -> None:
        calls = [asyncio.create_task(store.append("s", [said(n)])) for n in range(20)]
        await asyncio.sleep(0)
        await store.aclose()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(a, StoreError) or not isinstance(a, BaseException) for a in answers)

    def test_a_store_works_in_several_event_loops_one_after_another(self, store: SessionStore) -> None:
        for n in range(3):
            asyncio.run(_append_and_read(store, n))

    async def test_a_store_works_in_several_event_loops_at_once(self, store: SessionStore) -> None:
        await _append_and_read(store, 0)
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, _grow(store, f"loop{n}.")) for n in range(4)))
        found = await contents(store, "s")
        assert len(found) == 1 + 4 * 5
        for n in range(4):
            assert [i for i in found if i.startswith(f"loop{n}.")] == [f"loop{n}.{m}" for m in range(5)]


async def _append_and_read(store: SessionStore, n: int) -> None:
    await store.append("s", [said(n, f"i{n}")])
    assert await contents(store, "s") == [f"i{m}" for m in range(n + 1)]


async def _grow(store: SessionStore, prefix: str) -> None:
    for item in numbered(5, prefix):
        await store.append("s", [item])


async def _is_closed(store: SessionStore) -> None:
    for call in (
        lambda: store.append("s", [said("x")]),
        lambda: store.append("s", []),
        lambda: store.read("s"),
        lambda: store.remove("s", ["a"]),
        lambda: store.delete("s"),
        lambda: listed(store.sessions()),
        lambda: listed(store.sessions(after="s")),
    ):
        with pytest.raises(StoreError):
            await call()
