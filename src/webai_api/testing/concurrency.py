import asyncio
import contextlib
import itertools

import pytest

from webai_api.errors import Conflict
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, eventually, ids, numbered, present, said, seqs
from webai_api.types import History, Item

__all__ = ["Concurrency"]


class Concurrency:
    """Many tasks at once on one store."""

    async def test_of_many_writers_that_expect_one_version_one_wins(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(2)))
        answers = await asyncio.gather(
            *(
                store.append("s", [said(n, f"w{n}")], expected=known.version, after=known.last_seq, epoch=known.epoch)
                for n in range(30)
            ),
            return_exceptions=True,
        )
        (winner,) = [n for n, answer in enumerate(answers) if isinstance(answer, History)]
        assert await contents(store, "s") == ["i0", "i1", f"w{winner}"]
        version = present(await store.read("s")).version
        for n, answer in enumerate(answers):
            if n != winner:
                assert isinstance(answer, Conflict)
                assert answer.actual == version
                assert ids(answer.missed) == [f"w{winner}"]

    async def test_of_many_creators_one_wins(self, store: SessionStore) -> None:
        answers = await asyncio.gather(
            *(store.append("s", [said(n, f"w{n}")], expected=0) for n in range(30)), return_exceptions=True
        )
        assert sum(isinstance(answer, History) for answer in answers) == 1
        assert sum(isinstance(answer, Conflict) for answer in answers) == 29
        assert len(await contents(store, "s")) == 1

    async def test_writers_that_expect_nothing_all_win(self, store: SessionStore) -> None:
        answers = await asyncio.gather(*(store.append("s", [said(n, f"w{n}")]) for n in range(50)))
        assert sorted(await contents(store, "s")) == sorted(f"w{n}" for n in range(50))
        assert len({present(answer).version for answer in answers}) == 50
        assert seqs(await store.read("s")) == list(range(1, 51))

    async def test_no_update_is_lost_by_writers_that_try_again_after_a_conflict(self, store: SessionStore) -> None:
        await store.append("s", [], metadata={"count": 0})

        async def count() -> None:
            while True:
                session = present(await store.read("s", last=0))
                with contextlib.suppress(Conflict):
                    new = {"count": session.metadata["count"] + 1}
                    await store.append("s", [], metadata=new, expected=session.version)
                    return

        await asyncio.gather(*(count() for _ in range(12)))
        assert present(await store.read("s")).metadata == {"count": 12}

    async def test_concurrent_turns_never_interleave(self, store: SessionStore) -> None:
        turns = [[said(f"{t}.{n}", f"t{t}.{n}") for n in range(1 + t % 5)] for t in range(40)]
        await asyncio.gather(*(store.append("s", turn) for turn in turns))
        found = await contents(store, "s")
        assert len(found) == sum(len(turn) for turn in turns)
        for turn in turns:
            start = found.index(turn[0].id)
            assert found[start : start + len(turn)] == [item.id for item in turn]

    async def test_one_item_appended_by_many_is_stored_once(self, store: SessionStore) -> None:
        items = numbered(3)
        answers = await asyncio.gather(*(store.append("s", items) for _ in range(30)))
        assert len({present(answer).version for answer in answers}) == 1
        assert await contents(store, "s") == ["i0", "i1", "i2"]

    async def test_a_read_shows_one_instant(self, store: SessionStore) -> None:
        await store.append("s", numbered(2))

        async def write() -> None:
            for n in range(15):
                await store.append("s", numbered(2, f"w{n}."))

        async def watch() -> None:
            count = 0
            while count < 32:
                history = await store.read("s")
                session = present(history)
                count = len(history.items)
                assert count % 2 == 0
                assert (session.count, session.last_seq) == (count, history.items[-1].seq)

        await asyncio.gather(write(), watch(), watch())

    async def test_calls_of_one_task_keep_their_order(self, store: SessionStore) -> None:
        async def write(name: str) -> None:
            for n in range(8):
                await store.append("s", [said(n, f"{name}{n}")])
                assert ids(await store.read("s", last=100)).count(f"{name}{n}") == 1

        await asyncio.gather(*(write(name) for name in "abcd"))
        found = await contents(store, "s")
        for name in "abcd":
            assert [item_id for item_id in found if item_id.startswith(name)] == [f"{name}{n}" for n in range(8)]

    async def test_sessions_do_not_disturb_one_another(self, store: SessionStore) -> None:
        async def converse(session_id: str) -> None:
            version = 0
            for n in range(5):
                item = said([session_id, n])
                version = present(await store.append(session_id, [item], expected=version)).version
                last = (await store.read(session_id, last=1)).items
                assert [i.data["content"] for i in last] == [[session_id, n]]

        await asyncio.gather(*(converse(f"s{n}") for n in range(40)))

    async def test_a_lease_has_one_holder_who_can_renew_and_release_it(self, store: SessionStore) -> None:
        leases = store.with_options(namespace="lease")

        async def acquire(token: str, ttl: float = 60) -> History:
            return await leases.append("s", [Item(id=token, data={})], expected=0, ttl=ttl)

        answers = await asyncio.gather(*(acquire(f"t{n}") for n in range(20)), return_exceptions=True)
        (holder,) = [n for n, answer in enumerate(answers) if isinstance(answer, History)]
        assert all(isinstance(answer, Conflict) for n, answer in enumerate(answers) if n != holder)
        held = present(await leases.read("s"))
        renewed = present(await acquire(f"t{holder}", 5000))
        assert renewed.version == held.version
        assert (renewed.expires_at or 0) > (held.expires_at or 0) + 1000
        with pytest.raises(Conflict):
            await leases.delete("s", expected=held.version + 1)
        assert await leases.delete("s", expected=held.version) is True
        another = present(await acquire("another"))
        with pytest.raises(Conflict):
            await leases.delete("s", expected=held.version)
        assert present(await leases.read("s")) == another
        assert await store.read("s") == History(None)

    async def test_an_expired_lease_can_be_had_by_another(self, store: SessionStore) -> None:
        leases = store.with_options(namespace="lease")
        first = present(await leases.append("s", [Item(id="t1", data={})], expected=0, ttl=0.05))

        async def acquired() -> bool:
            try:
                await leases.append("s", [Item(id="t2", data={})], expected=0, ttl=60)
            except Conflict:
                return False
            return True

        await eventually(acquired)
        with pytest.raises(Conflict):
            await leases.delete("s", expected=first.version)

    async def test_a_cancelled_append_is_stored_once_or_not_at_all(self, store: SessionStore) -> None:
        turns = [numbered(2, f"t{t}.") for t in range(48)]
        tasks = [asyncio.create_task(store.append("s", turn)) for turn in turns]
        steps = itertools.cycle(range(4))
        for task in tasks[::2]:
            for _ in range(next(steps)):
                await asyncio.sleep(0)
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, History | asyncio.CancelledError)
        assert all(isinstance(answer, History) for answer in answers[1::2])
        found = await contents(store, "s")
        assert len(found) == len(set(found))
        for turn in turns[::2]:  # the caller's own repeat settles what the cancellation left open
            if not set(found) & {item.id for item in turn}:
                await store.append("s", turn)
        found = await contents(store, "s")
        assert sorted(found) == sorted(item.id for turn in turns for item in turn)
        for turn in turns:
            start = found.index(turn[0].id)
            assert found[start : start + 2] == [item.id for item in turn]

    async def test_a_cancelled_call_never_leaves_its_answer_to_another(self, store: SessionStore) -> None:
        for n in range(10):
            await store.append(f"s{n}", [said(n, f"only{n}")])

        async def check(n: int) -> None:
            assert ids(await store.read(f"s{n}")) == [f"only{n}"]

        for round_ in range(15):
            tasks = [asyncio.create_task(check(n)) for n in range(10)]
            for _ in range(round_ % 5):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                assert answer is None or isinstance(answer, asyncio.CancelledError)
            await asyncio.gather(*(check(n) for n in range(10)))
