import asyncio

import pytest

from webai_api.errors import Conflict, IdReused
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, ids, numbered, present, said, seqs
from webai_api.types import History, Item, Removal

__all__ = ["Removals"]


class Removals:
    """What `SessionStore.remove` drops, answers and leaves."""

    async def test_a_removal_names_what_it_removed_oldest_first(self, store: SessionStore) -> None:
        await store.append("s", numbered(5))
        removal = await store.remove("s", ["i3", "i0"])
        assert removal
        assert removal.ids == ("i0", "i3")
        assert removal.session == (await store.read("s")).session
        assert await contents(store, "s") == ["i1", "i2", "i4"]
        assert present(removal).count == 3

    async def test_ids_that_are_not_there_are_passed_over(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        assert (await store.remove("s", ["nobody", "i1", "i1", "else"])).ids == ("i1",)
        assert (await store.remove("s", ["i1", "i2"])).ids == ("i2",)
        assert await contents(store, "s") == ["i0"]

    async def test_a_removal_of_nothing_is_falsy_and_changes_nothing(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        before = await store.read("s")
        for item_ids in ([], ["nobody"]):
            removal = await store.remove("s", item_ids)
            assert not removal
            assert removal == Removal((), before.session)
        assert await store.read("s") == before

    async def test_a_missing_session_has_nothing_to_remove(self, store: SessionStore) -> None:
        for expected in (None, 0):
            assert await store.remove("s", ["a"], expected=expected) == Removal((), None)
        assert await store.read("s") == History(None)

    async def test_a_removal_gives_a_new_version_and_a_new_epoch(self, store: SessionStore) -> None:
        known = [present(await store.append("s", numbered(4)))]
        known += [present(await store.remove("s", [item_id])) for item_id in ("i1", "i3", "i0", "i2")]
        versions = [session.version for session in known]
        assert versions == sorted(set(versions))
        assert len({session.epoch for session in known}) == len(known)

    async def test_the_expected_version_lets_the_removal_pass(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(3)))
        version = present(await store.remove("s", ["i2"], expected=known.version)).version
        await store.append("s", [said("edited", "e")], expected=version)
        assert await contents(store, "s") == ["i0", "i1", "e"]

    async def test_another_version_is_a_conflict_and_nothing_is_removed(self, store: SessionStore) -> None:
        old = present(await store.append("s", numbered(2)))
        await store.append("s", [said("x")])
        before = await store.read("s")
        for expected in (0, old.version):
            with pytest.raises(Conflict) as caught:
                await store.remove("s", ["i0"], expected=expected)
            assert (caught.value.session_id, caught.value.expected) == ("s", expected)
            assert caught.value.actual == present(before).version
            assert caught.value.missed.session == before.session
        assert await store.read("s") == before
        with pytest.raises(Conflict) as caught:
            await store.remove("missing", ["i0"], expected=old.version)
        assert caught.value.actual == 0

    async def test_appending_a_removed_id_again_is_a_repeat(self, store: SessionStore) -> None:
        await store.append("s", numbered(2))
        after = present(await store.remove("s", ["i1"]))
        assert present(await store.append("s", [said("i1", "i1")])) == after
        with pytest.raises(IdReused):
            await store.append("s", [said("other", "i1")])
        assert await contents(store, "s") == ["i0"]

    async def test_a_repeated_operation_gets_the_first_answer(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        first = await store.remove("s", ["i2"], op_id="op")
        await store.append("s", [said("x", "x")])
        before = await store.read("s")
        for expected in (None, 0, 1):
            again = await store.remove("s", ["i2"], op_id="op", expected=expected)
            assert again.ids == first.ids == ("i2",)
            assert again.session == before.session
        assert await store.read("s") == before
        assert not await store.remove("s", ["i2"])
        assert not await store.remove("s", ["i2"], op_id="another")

    async def test_an_operation_on_other_items_is_another(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        assert (await store.remove("s", ["i2"], op_id="op")).ids == ("i2",)
        assert (await store.remove("s", ["i0", "i2"], op_id="op")).ids == ("i0",)
        assert (await store.remove("s", ["i2"], op_id="op")).ids == ("i2",)
        assert await contents(store, "s") == ["i1"]

    async def test_an_operation_that_removed_nothing_is_remembered_too(self, store: SessionStore) -> None:
        await store.append("s", numbered(1))
        assert not await store.remove("s", ["x"], op_id="op")
        await store.append("s", [said("x", "x")])
        assert not await store.remove("s", ["x"], op_id="op")
        assert await contents(store, "s") == ["i0", "x"]

    async def test_a_refused_operation_can_be_tried_again_under_its_name(self, store: SessionStore) -> None:
        version = present(await store.append("s", numbered(2))).version
        with pytest.raises(Conflict):
            await store.remove("s", ["i0"], expected=version + 1, op_id="op")
        assert (await store.remove("s", ["i0"], expected=version, op_id="op")).ids == ("i0",)

    async def test_the_last_16_operations_are_remembered(self, store: SessionStore) -> None:
        await store.append("s", numbered(16))
        for n in range(16):
            await store.remove("s", [f"i{n}"], op_id=f"op{n}")
        for n in range(16):
            assert (await store.remove("s", [f"i{n}"], op_id=f"op{n}")).ids == (f"i{n}",)

    async def test_an_operation_belongs_to_its_session(self, store: SessionStore) -> None:
        for session_id in ("s", "other"):
            await store.append(session_id, numbered(2))
        await store.remove("s", ["i0"], op_id="op")
        assert (await store.remove("other", ["i1"], op_id="op")).ids == ("i1",)

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize(
        "gone", [[0], [9], [4], [0, 1], [8, 9], [3, 4, 5], [0, 9], [1, 3, 5, 7], list(range(10)), list(range(9))]
    )
    async def test_numbering_goes_on_above_whatever_was_removed(
        self, store: SessionStore, gone: list[int], together: bool
    ) -> None:
        given = {item.seq: item.id for item in (await _appended(store, numbered(10))).items}
        calls = [[f"i{n}" for n in gone]] if together else [[f"i{n}"] for n in gone]
        for call in calls:
            assert (await store.remove("s", call)).ids == tuple(call)
        left = [f"i{n}" for n in range(10) if n not in gone]
        assert await contents(store, "s") == left
        now = await _appended(store, numbered(3, "j"))
        assert ids(now) == [*left, "j0", "j1", "j2"]
        assert all(given.setdefault(item.seq, item.id) == item.id for item in now.items)
        assert min(seqs(now)[-3:]) > 10

    @pytest.mark.parametrize("step", [1, 25, 100])
    async def test_many_disjoint_removals_keep_order_and_content_and_never_give_a_seq_twice(
        self, store: SessionStore, step: int
    ) -> None:
        given: dict[int, str] = {}
        expected = [item.id for item in numbered(210)]
        await _appended(store, numbered(210))
        gone = [f"i{n}" for n in range(1, 201, 2)]
        for start in range(0, len(gone), step):
            history = await store.read("s")
            assert ids(history) == expected
            assert all(given.setdefault(item.seq, item.id) == item.id for item in history.items)
            call = gone[start : start + step]
            assert (await store.remove("s", call)).ids == tuple(call)
            expected = [item_id for item_id in expected if item_id not in call]
        assert await contents(store, "s") == expected
        history = await _appended(store, numbered(70, "j"))
        assert ids(history) == [*expected, *(f"j{n}" for n in range(70))]
        assert all(given.setdefault(item.seq, item.id) == item.id for item in history.items)
        assert all(item.data["content"] == item.id for item in history.items)
        assert ids(await store.read("s", after=history.items[-3].seq, epoch=present(history).epoch)) == ["j68", "j69"]
        assert ids(await store.read("s", last=71)) == ["i209", *(f"j{n}" for n in range(70))]

    async def test_a_repeat_is_a_repeat_after_many_removals_too(self, store: SessionStore) -> None:
        await store.append("s", numbered(150))
        await store.append("s", [said("x", "x"), said("y", "y"), said("z", "z")])
        await store.remove("s", ["y", *(f"i{n}" for n in range(0, 150, 2))])
        before = await store.read("s")
        await store.append("s", [said("x", "x"), said("y", "y"), said("z", "z")])
        await store.append("s", numbered(150)[-30:])
        assert await store.read("s") == before

    async def test_trimming_goes_on_where_items_were_removed(self, store: SessionStore) -> None:
        await store.append("s", numbered(10))
        await store.remove("s", ["i1", "i3", "i8"])
        await store.append("s", numbered(2, "j"), keep=5)
        assert await contents(store, "s") == ["i6", "i7", "i9", "j0", "j1"]
        assert seqs(await store.read("s")) == [7, 8, 10, 11, 12]

    async def test_items_of_equal_content_are_told_apart_by_their_ids(self, store: SessionStore) -> None:
        await store.append("s", [Item(id=item_id, data={"content": "same"}) for item_id in "abc"])
        assert (await store.remove("s", ["b"])).ids == ("b",)
        assert await contents(store, "s") == ["a", "c"]

    async def test_one_of_many_concurrent_removers_owns_the_item(self, store: SessionStore) -> None:
        await store.append("s", numbered(8))
        removals = await asyncio.gather(*(store.remove("s", [f"i{n % 8}"]) for n in range(64)))
        assert sorted(item_id for removal in removals for item_id in removal.ids) == [f"i{n}" for n in range(8)]
        assert await contents(store, "s") == []

    async def test_concurrent_poppers_get_each_item_once(self, store: SessionStore) -> None:
        await store.append("s", numbered(12))

        async def pop() -> str:
            while True:
                (last,) = (await store.read("s", last=1)).items
                if await store.remove("s", [last.id]):
                    return last.id

        popped = await asyncio.gather(*(pop() for _ in range(10)))
        assert sorted(popped) == sorted(f"i{n}" for n in range(2, 12))
        assert await contents(store, "s") == ["i0", "i1"]


async def _appended(store: SessionStore, items: list[Item]) -> History:
    await store.append("s", items)
    return await store.read("s")
