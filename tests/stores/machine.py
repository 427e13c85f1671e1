"""Any store against the memory store: the same calls, the same answers.

Versions and epochs are opaque, so they are compared by their pattern: equal here if and only if equal there. Seqs are
compared by value until the store numbers anew, which it may after a removal (the epoch tells); then by position.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from webai_api.errors import Conflict, DuplicateId, IdReused, SessionError
from webai_api.protocol import SessionStore
from webai_api.stores.memory import MemoryStore
from webai_api.types import History, Item, Removal, Session

Place = tuple[str | None, str]  # tenant and namespace
PLACES = [(None, "session"), ("t", "session"), (None, "lease")]
SESSION_IDS = ["a", "a:h", "{session:a}:h", "session@t:a", "é*%7B"]
TTLS = st.sampled_from([None, 1000, 5000.5, 20000, math.inf])
METADATA = st.sampled_from([None, None, {}, {"k": 1}, {"k": 1.5, "tags": ["ä", {}]}])
OPERATIONS = 12  # named removals of a session; every store remembers 16
SIZES = st.sampled_from([1, 1, 1, 2, 2, 3, 5, 20, 63, 64, 65, 130])


@dataclass
class Log:
    """What the machine knows of one session address, in both stores."""

    place: Place
    session_id: str
    versions: list[tuple[int, int]] = field(default_factory=list)  # model's, store's; in order of appearance
    epochs: list[tuple[int, int]] = field(default_factory=list)
    calls: list[list[Item]] = field(default_factory=list)
    removals: list[tuple[str, list[str]]] = field(default_factory=list)
    deletions: list[str] = field(default_factory=list)
    held: int = 0  # items
    damaged: set[int] = field(default_factory=set)  # the model's seqs
    moved: dict[int, int] = field(default_factory=dict)  # model's seq -> store's, once the store has numbered anew
    shift: int = 0  # the same for all that was appended since


Answer = History | Removal | bool | SessionError


class StoreMachine(RuleBasedStateMachine):
    """Subclass it with `make_store`, an empty store, and `damage`, which spoils an entry behind the store's back."""

    make_store: ClassVar[Callable[[], SessionStore]]
    damage: ClassVar[Callable[..., None] | None] = None  # place, session id, seq, position among those held

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.model, self.store = MemoryStore(), type(self).make_store()
        self.logs = {(place, name): Log(place, name) for place in PLACES for name in SESSION_IDS}
        self.fresh = 0

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.store.aclose())
            self.runner.run(self.model.aclose())
            self.runner.close()

    # What is called

    @rule(pick=st.data(), size=SIZES, ttl=TTLS, metadata=METADATA, keep=st.sampled_from([None, None, None, 1, 3, 70]))
    def append_new_items(
        self, pick: st.DataObject, size: int, ttl: float | None, metadata: dict[str, Any] | None, keep: int | None
    ) -> None:
        log = self.pick_log(pick)
        items = [self.new_item() for _ in range(size)]
        self.append(log, items, pick, ttl=ttl, metadata=metadata, keep=keep)

    @rule(pick=st.data(), ttl=TTLS, metadata=METADATA, keep=st.sampled_from([None, None, 1, 5, 64]))
    def touch(self, pick: st.DataObject, ttl: float | None, metadata: dict[str, Any] | None, keep: int | None) -> None:
        self.append(self.pick_log(pick, lambda log: log.held > 1), [], pick, ttl=ttl, metadata=metadata, keep=keep)

    @rule(
        pick=st.data(),
        change=st.sampled_from([*["no"] * 5, "part", "longer", "reordered", "edited", "joined", "split"]),
        ttl=TTLS,
        metadata=METADATA,
        keep=st.sampled_from([None, None, 1, 3]),
    )
    def append_again(
        self, pick: st.DataObject, change: str, ttl: float | None, metadata: dict[str, Any] | None, keep: int | None
    ) -> None:
        log = self.pick_log(pick, lambda log: log.calls)
        if not log.calls:
            return
        items = list(pick.draw(st.sampled_from(log.calls[-4:])))
        at = pick.draw(st.integers(0, len(items) - 1), "at")
        if change == "part":
            items = items[at : at + pick.draw(st.integers(1, len(items)))]
        elif change == "longer":
            items.insert(pick.draw(st.sampled_from([0, at, len(items)])), self.new_item())
        elif change == "reordered":
            items = items[at:] + items[:at]
        elif change == "edited":
            items[at] = Item(id=items[at].id, data={**items[at].data, "edited": True})
        elif change == "joined":
            ids = {item.id for item in items}
            items += [item for item in pick.draw(st.sampled_from(log.calls[-4:])) if item.id not in ids]
        elif change == "split":
            del items[at : at + 1]
        self.append(log, items, pick, ttl=ttl, metadata=metadata, keep=keep)

    @precondition(lambda self: self.any_held())
    @rule(pick=st.data())
    def read(self, pick: st.DataObject) -> None:
        log = self.pick_log(pick, lambda log: log.held)
        for _ in range(3):
            self.read_window(
                log,
                after=self.pick_seq(log, pick, "after"),
                before=pick.draw(st.none() | st.just(1), "before") and self.pick_seq(log, pick, "before"),
                last=pick.draw(st.sampled_from([None, None, 0, 1, 2, 3, 64, 1000]), "last"),
                epoch=self.pick_number(log.epochs, pick, "epoch"),
            )

    @precondition(lambda self: self.any_held())
    @rule(pick=st.data(), how=st.sampled_from(["last", "first", "some", "alternate", "missing", "again", "again"]))
    def remove(self, pick: st.DataObject, how: str) -> None:
        named = how == "again"
        log = self.pick_log(pick, lambda log: log.removals if named else log.held)
        entries = self.held(log).items
        spoilt = {item.id for item in entries if item.seq in log.damaged}  # whether these can go is open
        held = [item.id for item in entries if item.id not in spoilt]
        op_id: str | None = None
        if how == "again" and log.removals:
            op_id, item_ids = pick.draw(st.sampled_from(log.removals))
        elif how == "alternate":
            item_ids = held[:: pick.draw(st.integers(2, 3))]
        elif how == "some" and held:
            item_ids = pick.draw(st.lists(st.sampled_from(held), min_size=1, max_size=4))
        elif how == "missing":
            known = {item.id for item in entries}
            item_ids = ["nobody", *(item.id for call in log.calls[-1:] for item in call[:1] if item.id not in known)]
        else:
            item_ids = held[:1] if how == "first" else held[-1:]
        repeated = op_id is not None
        if op_id is None and len(log.removals) < OPERATIONS and pick.draw(st.booleans(), "named"):
            op_id = f"op{len(log.removals)}"
        expected = self.pick_number(log.versions, pick, "expected")
        mine, theirs = self.both(
            log,
            lambda view, which: view.remove(log.session_id, item_ids, expected=which(expected), op_id=op_id),
        )
        if isinstance(mine, Removal) and isinstance(theirs, Removal):
            log.removals += [(op_id, item_ids)] if op_id and not repeated and mine.session else []
            assert theirs.ids == mine.ids
            self.renumber(log, theirs.session, mine.session)
            self.same_session(log, mine.session, theirs.session)
        else:
            self.same_error(log, mine, theirs)
        self.look(log)

    @rule(pick=st.data(), named=st.sampled_from([True, False]), again=st.booleans())
    def delete(self, pick: st.DataObject, named: bool, again: bool) -> None:
        log = self.pick_log(pick, lambda log: log.deletions if again else log.held)
        if not again and pick.draw(st.integers(0, 2)):
            return  # or no session would grow old
        op_id: str | None = None
        if again and log.deletions:
            op_id = pick.draw(st.sampled_from(log.deletions))
        elif named:
            op_id = f"gone{len(log.deletions)}"
            log.deletions.append(op_id)
        expected = self.pick_number(log.versions, pick, "expected")
        mine, theirs = self.both(
            log, lambda view, which: view.delete(log.session_id, expected=which(expected), op_id=op_id)
        )
        if isinstance(mine, bool):
            assert theirs is mine
        else:
            self.same_error(log, mine, theirs)
        if self.held(log).session is None:
            log.damaged, log.moved, log.shift, log.removals = set(), {}, 0, []
        self.look(log)

    @rule(place=st.sampled_from(PLACES), prefix=st.sampled_from(["", "", "a", "a:", "{", "é*", "*"]))
    def list_sessions(self, place: Place, prefix: str) -> None:
        mine = {s.id: s for s in self.runner.run(_listed(self.view(self.model, place), prefix))}
        theirs: list[Session] = []
        for _ in range(400):  # a new session may take a second to appear
            theirs = self.runner.run(_listed(self.view(self.store, place), prefix))
            if len(theirs) >= len(mine):
                break
            self.runner.run(asyncio.sleep(0.005))
        assert sorted(s.id for s in theirs) == sorted(mine)
        for session in theirs:
            self.same_session(self.logs[place, session.id], mine[session.id], session)

    @precondition(lambda self: type(self).damage is not None)
    @rule(pick=st.data())
    def damage_an_entry(self, pick: st.DataObject) -> None:
        log = self.pick_log(pick, lambda log: log.held)
        held = [item.seq for item in self.held(log).items]
        damage = type(self).damage
        if held and damage is not None:
            at = pick.draw(st.integers(0, len(held) - 1), "at")
            damage(log.place, log.session_id, self.translated(log, held[at]), at)
            log.damaged.add(held[at])
            self.look(log)

    # How it is drawn

    def any_held(self) -> bool:
        """Return whether there is an item anywhere: without one, most calls tell little."""
        return any(log.held for log in self.logs.values())

    def pick_log(self, pick: st.DataObject, suits: Callable[[Log], object] = lambda log: True) -> Log:
        """Return a session that suits, if there is one; most often the same, so that it gets a history."""
        names = [(place, name) for name in SESSION_IDS for place in PLACES]
        good = [name for name in names if suits(self.logs[name])]
        return self.logs[pick.draw(st.sampled_from([*good[:1] * 60, *good[1:2] * 10, *names]), "session")]

    def pick_number(self, known: list[tuple[int, int]], pick: st.DataObject, name: str) -> tuple[int, int] | None:
        """Return nothing, the newest version (or epoch), an older one, or none of them; as the two stores name it."""
        often: list[tuple[int, int] | None] = [None, *known[-1:]]
        choices = [*often * 5, *known[-3:], (0, 0), (7, 7)]
        return pick.draw(st.sampled_from(choices), name)

    def pick_seq(self, log: Log, pick: st.DataObject, name: str) -> int:
        """Return one of the model's seqs, or one beyond."""
        session = self.held(log).session
        last = session.last_seq if session else 0
        return pick.draw(st.sampled_from([0, last, last + 1, 10**30]) | st.integers(0, last + 1), name)

    def new_item(self) -> Item:
        self.fresh += 1
        n = self.fresh
        return Item(id=f"i{n}", data={"id": n, "~at": None, "role": "user", "content": "ä" * (n % 7), "n": {"m": [n]}})

    # How both are called

    def append(self, log: Log, items: list[Item], pick: st.DataObject, **options: Any) -> None:
        expected = self.pick_number(log.versions, pick, "expected")
        epoch = self.pick_number(log.epochs, pick, "epoch")
        after = pick.draw(st.none() | st.just(1), "with news") and self.pick_seq(log, pick, "after")

        def call(view: SessionStore, which: "Which") -> Awaitable[History]:
            known, start, same = which(expected), which.seq(after), which(epoch)
            return view.append(log.session_id, items, expected=known, after=start, epoch=same, **options)

        mine, theirs = self.both(log, call)
        if isinstance(mine, History) and isinstance(theirs, History):
            log.calls += [items] if items and items not in log.calls else []
            self.same_history(log, mine, theirs, own={item.id for item in items})
        else:
            self.same_error(log, mine, theirs)
        self.look(log)

    def read_window(
        self, log: Log, *, after: int, before: int | None, last: int | None, epoch: tuple[int, int] | None
    ) -> None:
        def call(view: SessionStore, which: "Which") -> Awaitable[History]:
            start, end = which.seq(after), which.seq(before)
            good = None if log.damaged and which.model else last  # the model counts damaged ones too: cut it below
            return view.read(log.session_id, after=start or 0, before=end, last=good, epoch=which(epoch))

        mine, theirs = self.both(log, call)
        assert isinstance(mine, History)
        assert isinstance(theirs, History)
        self.same_history(log, mine, theirs, last)

    def both(self, log: Log, call: "Callable[[SessionStore, Which], Awaitable[Any]]") -> tuple[Answer, Answer]:
        return (
            self.answer(call(self.view(self.model, log.place), Which(self, log, model=True))),
            self.answer(call(self.view(self.store, log.place), Which(self, log, model=False))),
        )

    def answer(self, call: Awaitable[Any]) -> Answer:
        async def caught() -> Answer:
            try:
                answer: Answer = await call
            except SessionError as error:
                return error
            return answer

        return self.runner.run(caught())

    def view(self, store: SessionStore, place: Place) -> SessionStore:
        tenant, namespace = place
        return store.with_options(tenant=tenant, namespace=namespace)

    def held(self, log: Log) -> History:
        return self.runner.run(self.view(self.model, log.place).read(log.session_id))

    def look(self, log: Log) -> None:
        """Compare the whole session."""
        log.held = len(self.held(log).items)
        self.read_window(log, after=0, before=None, last=None, epoch=None)

    # How answers are compared

    def same_history(
        self, log: Log, mine: History, theirs: History, last: int | None = None, own: Set[str] = frozenset()
    ) -> None:
        self.same_session(log, mine.session, theirs.session)
        good = [item for item in mine.items if item.seq not in log.damaged]
        if log.damaged and last is not None:
            good = good[len(good) - min(last, len(good)) :]
        assert [(i.id, i.seq, i.data) for i in theirs.items] == [
            (i.id, self.translated(log, i.seq), i.data) for i in good
        ]
        for ours, item in zip(good, theirs.items, strict=True):
            _close(ours.created_at, item.created_at)
        damaged = [self.translated(log, item.seq) for item in mine.items if item.seq in log.damaged]
        if last is None and not own:
            assert list(theirs.corrupt) == damaged
        else:  # how far back a store looks is open, and whether it tells that a damaged one is the caller's own
            assert set(theirs.corrupt) <= {self.translated(log, seq) for seq in log.damaged}
            assert last is not None or set(theirs.corrupt) >= set(damaged)

    def same_session(self, log: Log, mine: Session | None, theirs: Session | None) -> None:
        if mine is None or theirs is None:
            assert mine is theirs is None
            return
        assert theirs.id == mine.id
        assert theirs.count == mine.count
        assert theirs.metadata == mine.metadata
        assert theirs.last_seq == self.translated(log, mine.last_seq)
        assert theirs.first_seq == self.translated(log, mine.first_seq)
        _close(mine.created_at, theirs.created_at)
        _close(mine.updated_at, theirs.updated_at)
        _close(mine.expires_at, theirs.expires_at)
        _match(log.versions, mine.version, theirs.version)
        _match(log.epochs, mine.epoch, theirs.epoch)
        assert [pair[1] for pair in log.versions] == sorted(pair[1] for pair in log.versions)

    def same_error(self, log: Log, mine: Answer, theirs: Answer) -> None:
        assert type(theirs) is type(mine), f"{theirs!r}, and the memory store: {mine!r}"
        if isinstance(mine, Conflict) and isinstance(theirs, Conflict):
            assert theirs.session_id == mine.session_id
            if mine.actual or theirs.actual:
                _match(log.versions, mine.actual, theirs.actual)
            if mine.missed.items or theirs.missed.items or mine.missed.session or theirs.missed.session:
                self.same_history(log, mine.missed, theirs.missed)
        elif isinstance(mine, DuplicateId | IdReused) and isinstance(theirs, DuplicateId | IdReused):
            assert (theirs.session_id, theirs.item_ids) == (mine.session_id, mine.item_ids)
        else:
            raise AssertionError(f"{theirs!r}, and the memory store: {mine!r}")  # noqa: TRY004  # not a type check

    def translated(self, log: Log, seq: int) -> int:
        """Return the store's number for the model's."""
        if not log.moved and not log.shift:
            return seq
        if seq in log.moved:
            return log.moved[seq]
        border = max(log.moved, default=0)
        below = [s for s in log.moved if s < seq]
        return log.moved[max(below)] if seq < border and below else (0 if seq < border else seq + log.shift)

    def renumber(self, log: Log, theirs: Session | None, mine: Session | None) -> None:
        """Learn the store's new numbers if this removal made it number anew."""
        if mine is None or theirs is None or theirs.last_seq == self.translated(log, mine.last_seq):
            return
        before = self.translated(log, mine.last_seq)
        ours = self.held(log)
        assert (ours.session and ours.session.epoch) not in [pair[0] for pair in log.epochs], "same epoch, other seqs"
        numbers = list(range(theirs.first_seq, theirs.last_seq + 1))
        assert theirs.first_seq > before, "a seq was given twice"
        log.moved = dict(zip([item.seq for item in ours.items], numbers, strict=True))
        log.shift = theirs.last_seq - mine.last_seq
        log.moved[mine.last_seq] = theirs.last_seq


@dataclass
class Which:
    """Says numbers as one of the two stores names them."""

    machine: StoreMachine
    log: Log
    model: bool

    def __call__(self, pair: tuple[int, int] | None) -> int | None:
        return None if pair is None else pair[0 if self.model else 1]

    def seq(self, number: int | None) -> int | None:
        return number if number is None or self.model else self.machine.translated(self.log, number)


async def _listed(view: SessionStore, prefix: str) -> list[Session]:
    return [session async for session in view.sessions(prefix=prefix)]


def _match(known: list[tuple[int, int]], mine: int, theirs: int) -> None:
    """Check that the two numbers are the same one of those known, or both are new; remember a new pair."""
    if (mine, theirs) not in known:
        assert mine not in [pair[0] for pair in known], f"{theirs} should be an old number: {known}"
        assert theirs not in [pair[1] for pair in known], f"{theirs} should be a new number: {known}"
        known.append((mine, theirs))


def _close(mine: float | None, theirs: float | None) -> None:
    if mine is None or theirs is None:
        assert mine is theirs
    else:
        assert abs(mine - theirs) < 10
