"""``price_rows``: your own prices, dated, which take precedence over the price list."""

from __future__ import annotations

from sqlalchemy import BigInteger, Text, UniqueConstraint
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class StoredPriceRow(Row, table=True):
    """One model's own prices in ``[valid_from_us, valid_until_us)``, nano-dollars per million tokens.

    Never deleted, and changed at most once: ``valid_until_us`` goes from NULL to the start
    of the next row. ``provider`` is ``*`` for any; ``model`` may end with ``*``; both in
    lower case. A NULL cache price means the input price, a NULL output price that there is
    none.
    """

    __tablename__ = "price_rows"
    __table_args__ = (
        UniqueConstraint("namespace", "provider", "model", "valid_from_us", name="uq_price_rows_model_from"),
    )

    id: str = Field(primary_key=True, max_length=36)
    namespace: str = Field(max_length=100)
    provider: str = Field(max_length=100)
    model: str = Field(max_length=200)
    valid_from_us: int = Field(sa_type=BigInteger)
    valid_until_us: int | None = Field(default=None, sa_type=BigInteger)
    input_nanousd_per_mtok: int = Field(sa_type=BigInteger)
    cache_read_nanousd_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    cache_write_nanousd_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    output_nanousd_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    note: str = Field(default="", sa_type=Text)
    created_at_us: int = Field(sa_type=BigInteger)
