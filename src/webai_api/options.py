"""How a view of a store addresses and waits: `SessionStore.with_options`, once for all our stores."""

import re
from copy import copy
from typing import ClassVar, Self

from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import DEFAULT_LIMITS, TTL_MAX
from webai_api.types import StoreOptions

__all__ = ["OptionsView"]

NAMESPACE = re.compile(r"[a-z][a-z-]{0,31}")


class OptionsView:
    """A store whose views differ in nothing but their options."""

    durabilities: ClassVar[tuple[str, ...]] = ("memory",)
    """The levels that `with_options` accepts."""
    _options: StoreOptions

    def with_options(
        self,
        *,
        tenant: str | None = None,
        namespace: str | None = None,
        durability: str | None = None,
        deadline: float | None = None,
    ) -> Self:
        """See `SessionStore.with_options`."""
        if tenant is not None:
            DEFAULT_LIMITS.check_id(tenant, "tenant")
        if namespace is not None and not NAMESPACE.fullmatch(DEFAULT_LIMITS.check_id(namespace, "namespace")):
            raise InvalidInput("namespace must be 1 to 32 characters of a-z and '-', beginning with a letter")
        if durability is not None and durability not in self.durabilities:
            offered = ", ".join(self.durabilities)
            raise InvalidInput(f"this store offers the durabilities {offered}, not {durability!r:.40}")
        if deadline is not None:
            _check_deadline(deadline)
        now = self._options
        view = copy(self)
        view._options = StoreOptions(  # noqa: SLF001  # a view is one of us
            tenant=now.tenant if tenant is None else tenant,
            namespace=now.namespace if namespace is None else namespace,
            durability=now.durability if durability is None else durability,
            deadline=now.deadline if deadline is None else deadline,
        )
        return view


def _check_deadline(deadline: object) -> None:
    if isinstance(deadline, bool) or not isinstance(deadline, int | float):
        raise InvalidType(f"deadline must be a number of seconds, not {type(deadline).__name__}")
    if not 0 < deadline <= TTL_MAX:
        raise InvalidInput(f"deadline must be above 0 and at most {TTL_MAX:.0f} seconds")
