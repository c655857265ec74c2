"""``payloads``: content-addressed values; rows are shared and never changed."""

from __future__ import annotations

from sqlalchemy import BigInteger, LargeBinary, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class Payload(Row, table=True):
    """A value or a part of one; ``id`` is a hash of codec and bytes, ``size`` the bytes before compression."""

    __tablename__ = "payloads"

    namespace: str = Field(primary_key=True, max_length=100)
    id: str = Field(primary_key=True, max_length=64)
    codec: str = Field(max_length=30)
    size: int = Field(sa_type=BigInteger)
    sha256: str = Field(max_length=64)
    inline: bytes | None = Field(default=None, sa_type=LargeBinary)
    uri: str | None = Field(default=None, sa_type=Text)
