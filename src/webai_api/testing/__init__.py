"""`StoreConformance`: what every session store must do, as tests. For our stores and for yours.

    from webai_api.testing import StoreConformance

    class TestMyStore(StoreConformance):
        @pytest.fixture
        async def store(self) -> AsyncIterator[SessionStore]:
            async with aclosing(MyStore()) as store:
                yield store

That is all: the fixture gives an empty store to each test, and the suite knows nothing but `SessionStore`. It needs
pytest and pytest-asyncio in ``asyncio_mode = "auto"``. A store is expected to accept what `webai_api.limits.Limits`
accepts by default, and to refuse the rest.
"""

try:
    import pytest
except ImportError as error:
    raise ImportError("webai_api.testing needs: pip install pytest pytest-asyncio") from error

PARTS = (
    "appends concurrency deletions expiry fidelity inputs lifetime listing reads removals repeats tenants vocabulary"
)
# Before they are imported, so that a failing assert shows its values as in any test file.
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in PARTS.split()))

from webai_api.testing.appends import Appends  # noqa: E402  # see above
from webai_api.testing.concurrency import Concurrency  # noqa: E402
from webai_api.testing.deletions import Deletions  # noqa: E402
from webai_api.testing.expiry import Expiry  # noqa: E402
from webai_api.testing.fidelity import Fidelity  # noqa: E402
from webai_api.testing.inputs import Inputs  # noqa: E402
from webai_api.testing.lifetime import Lifetime  # noqa: E402
from webai_api.testing.listing import Listing  # noqa: E402
from webai_api.testing.reads import Reads  # noqa: E402
from webai_api.testing.removals import Removals  # noqa: E402
from webai_api.testing.repeats import Repeats  # noqa: E402
from webai_api.testing.tenants import Tenants  # noqa: E402

__all__ = ["StoreConformance"]


class StoreConformance(
    Appends,
    Repeats,
    Reads,
    Removals,
    Deletions,
    Expiry,
    Listing,
    Tenants,
    Fidelity,
    Inputs,
    Concurrency,
    Lifetime,
):
    """Subclass it, give it one async fixture named ``store``, and pytest checks every sentence of `SessionStore`."""
