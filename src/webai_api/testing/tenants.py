import asyncio
import itertools
from functools import partial

import pytest

from webai_api.errors import SessionNotFound
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, eventually, listed, numbered, said
from webai_api.types import History

__all__ = ["Tenants"]

TENANTS = (None, "t", "x", "t:x", "t@x", "{t}", "%7Bt%7D", "session", "*")
NAMESPACES = ("session", "lease", "session-log")
IDS = ("x", "t:x", "x:log", "x:h", "{session:x}:h", "{session:x}:log", "session@t:x", "session:x", "lease:x", "@t:x")


class Tenants:
    """Views of one store: what they share, and what they keep apart."""

    async def test_no_id_of_one_tenant_or_namespace_reaches_another(self, store: SessionStore) -> None:
        views = {
            (tenant, namespace): store.with_options(tenant=tenant, namespace=namespace)
            for tenant, namespace in itertools.product(TENANTS, NAMESPACES)
        }
        await asyncio.gather(
            *(
                view.append(session_id, [said(f"{where} {session_id}", "i")], metadata={"at": list(where)})
                for where, view in views.items()
                for session_id in IDS
            )
        )
        for where, view in views.items():
            for session_id in IDS:
                history = await view.read(session_id)
                assert [item.data["content"] for item in history.items] == [f"{where} {session_id}"]
                assert history.session is not None
                assert history.session.metadata == {"at": list(where)}

    async def test_a_listing_shows_its_own_tenant_and_namespace_only(self, store: SessionStore) -> None:
        places = list(itertools.product(TENANTS[:4], NAMESPACES))
        for n, (tenant, namespace) in enumerate(places):
            view = store.with_options(tenant=tenant, namespace=namespace)
            await view.append(f"only{n}", [])
            await view.append("x", [])
        for n, (tenant, namespace) in enumerate(places):
            view = store.with_options(tenant=tenant, namespace=namespace)
            await eventually(partial(_lists, view, {f"only{n}", "x"}))
            with pytest.raises(SessionNotFound):
                await listed(view.sessions(after=f"only{(n + 1) % len(places)}"))

    async def test_what_one_tenant_does_to_a_session_leaves_the_others(self, store: SessionStore) -> None:
        views = [store.with_options(tenant=tenant) for tenant in TENANTS]
        for view in views:
            await view.append("x", numbered(2))
        first, second, third, *others = views
        await first.delete("x")
        await second.remove("x", ["i0"], op_id="op")
        await third.append("x", [said("more", "more")], keep=1)
        assert await first.read("x") == History(None)
        assert await contents(second, "x") == ["i1"]
        assert await contents(third, "x") == ["more"]
        for view in others:
            assert await contents(view, "x") == ["i0", "i1"]
            assert (await view.remove("x", ["i1"], op_id="op")).ids == ("i1",)

    async def test_views_with_the_same_options_share_their_sessions(self, store: SessionStore) -> None:
        await store.with_options(tenant="t", namespace="lease").append("x", numbered(1))
        assert await contents(store.with_options(namespace="lease").with_options(tenant="t"), "x") == ["i0"]
        assert await contents(store.with_options(namespace="lease"), "x") == []

    async def test_an_option_not_given_stays_as_it_is_in_the_view(self, store: SessionStore) -> None:
        view = store.with_options(tenant="t", namespace="lease", deadline=30)
        await view.append("x", numbered(1))
        assert await contents(view.with_options(), "x") == ["i0"]
        assert await contents(view.with_options(deadline=20.5), "x") == ["i0"]
        assert await contents(view.with_options(tenant="u").with_options(tenant="t"), "x") == ["i0"]

    async def test_making_a_view_leaves_the_store_as_it_was(self, store: SessionStore) -> None:
        await store.append("x", numbered(1))
        store.with_options(tenant="t", namespace="lease")
        assert await contents(store, "x") == ["i0"]

    async def test_the_namespace_of_conversations_is_session(self, store: SessionStore) -> None:
        await store.append("x", numbered(1))
        assert await contents(store.with_options(namespace="session"), "x") == ["i0"]


async def _lists(view: SessionStore, expected: set[str]) -> bool:
    return set(await listed(view.sessions())) == expected
