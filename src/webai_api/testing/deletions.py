import asyncio

import pytest

from webai_api.errors import Conflict
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, ids, listed, numbered, present, said, seqs
from webai_api.types import History

__all__ = ["Deletions"]


class Deletions:
    """What `SessionStore.delete` drops, and how the next session of the same id begins."""

    async def test_delete_tells_whether_there_was_a_session(self, store: SessionStore) -> None:
        assert await store.delete("s") is False
        await store.append("s", numbered(2))
        assert await store.delete("s") is True
        assert await store.read("s") == History(None)
        assert await store.delete("s") is False

    async def test_an_empty_session_can_be_deleted(self, store: SessionStore) -> None:
        await store.append("s", [])
        assert await store.delete("s") is True
        assert await store.read("s") == History(None)

    async def test_a_session_emptied_by_removal_can_be_deleted(self, store: SessionStore) -> None:
        await store.append("s", numbered(1))
        await store.remove("s", ["i0"])
        assert await store.delete("s") is True
        assert await store.delete("s") is False

    async def test_other_sessions_stay(self, store: SessionStore) -> None:
        for session_id in ("s", "s2", "S", "s:h"):
            await store.append(session_id, numbered(1))
        await store.delete("s")
        assert sorted(await listed(store.sessions())) == ["S", "s2", "s:h"]
        assert await contents(store, "s2") == ["i0"]

    async def test_the_expected_version_lets_the_deletion_pass(self, store: SessionStore) -> None:
        version = present(await store.append("s", numbered(1))).version
        assert await store.delete("s", expected=version) is True
        assert await store.delete("s", expected=0) is False

    async def test_another_version_is_a_conflict_and_nothing_is_deleted(self, store: SessionStore) -> None:
        old = present(await store.append("s", numbered(1))).version
        await store.append("s", [said("x")])
        before = await store.read("s")
        for expected in (0, old, 10**30):
            with pytest.raises(Conflict) as caught:
                await store.delete("s", expected=expected)
            assert (caught.value.session_id, caught.value.expected) == ("s", expected)
            assert caught.value.actual == present(before).version
            assert caught.value.missed.session == before.session
        assert await store.read("s") == before

    async def test_deleting_a_version_of_a_missing_session_is_a_conflict(self, store: SessionStore) -> None:
        version = present(await store.append("s", numbered(1))).version
        await store.delete("s")
        with pytest.raises(Conflict) as caught:
            await store.delete("s", expected=version)
        assert (caught.value.actual, caught.value.missed) == (0, History(None))

    async def test_the_next_session_of_the_id_begins_anew(self, store: SessionStore) -> None:
        await store.append("s", numbered(3), metadata={"title": "old"}, ttl=1000)
        old = present(await store.remove("s", ["i0"]))
        await store.delete("s")
        new = present(await store.append("s", [said("x", "x")], expected=0))
        assert new.version > old.version
        assert new.epoch != old.epoch
        assert (new.first_seq, new.last_seq, new.count) == (1, 1, 1)
        assert (new.metadata, new.expires_at) == ({}, None)
        assert seqs(await store.read("s")) == [1]

    async def test_versions_and_epochs_never_come_again_however_often_a_session_is_made(
        self, store: SessionStore
    ) -> None:
        versions, epochs = [], set()
        for n in range(20):
            first = present(await store.append("s", [said(n)]))
            second = present(await store.append("s", [said(n)]))
            versions += [first.version, second.version]
            epochs.add(second.epoch)
            assert await store.delete("s")
        assert versions == sorted(set(versions))
        assert len(epochs) == 20

    async def test_ids_are_forgotten_with_the_session(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        await store.delete("s")
        await store.append("s", [said("new content", "i1"), said("i0", "i0")])
        assert ids(await store.read("s")) == ["i1", "i0"]

    async def test_named_removals_are_forgotten_with_the_session(self, store: SessionStore) -> None:
        await store.append("s", numbered(2))
        await store.remove("s", ["i0"], op_id="op")
        await store.delete("s")
        await store.append("s", numbered(2))
        assert (await store.remove("s", ["i1"], op_id="op")).ids == ("i1",)

    async def test_who_knew_the_old_session_gets_everything_of_the_new_one(self, store: SessionStore) -> None:
        old = present(await store.append("s", numbered(3)))
        await store.delete("s")
        await store.append("s", numbered(5, "j"))
        assert ids(await store.read("s", after=old.last_seq, epoch=old.epoch)) == ["j0", "j1", "j2", "j3", "j4"]

    async def test_a_writer_of_the_old_session_conflicts_with_the_new_one(self, store: SessionStore) -> None:
        old = present(await store.append("s", numbered(3)))
        await store.delete("s")
        new = present(await store.append("s", numbered(3, "j")))
        with pytest.raises(Conflict) as caught:
            await store.append("s", [said("x")], expected=old.version, after=old.last_seq, epoch=old.epoch)
        assert caught.value.actual == new.version
        assert ids(caught.value.missed) == ["j0", "j1", "j2"]

    async def test_a_repeated_operation_gets_the_first_answer_and_spares_the_next_session(
        self, store: SessionStore
    ) -> None:
        version = present(await store.append("s", numbered(2))).version
        assert await store.delete("s", op_id="op", expected=version) is True
        assert await store.delete("s", op_id="op", expected=version) is True
        await store.append("s", [said("x", "x")])
        assert await store.delete("s", op_id="op") is True
        assert await contents(store, "s") == ["x"]
        assert await store.delete("s", op_id="another") is True
        assert await store.read("s") == History(None)

    async def test_an_operation_that_found_nothing_is_remembered_too(self, store: SessionStore) -> None:
        assert await store.delete("s", op_id="op") is False
        assert await store.read("s") == History(None)
        await store.append("s", numbered(1), expected=0)
        assert await store.delete("s", op_id="op") is False
        assert await contents(store, "s") == ["i0"]

    async def test_an_operation_belongs_to_its_session(self, store: SessionStore) -> None:
        await store.append("s", numbered(1))
        await store.append("other", numbered(1))
        assert await store.delete("s", op_id="op") is True
        assert await store.delete("other", op_id="op") is True
        assert await listed(store.sessions()) == []

    async def test_one_of_many_concurrent_deleters_finds_the_session(self, store: SessionStore) -> None:
        await store.append("s", numbered(2))
        answers = await asyncio.gather(*(store.delete("s") for _ in range(20)))
        assert sorted(answers) == [False] * 19 + [True]
