"""``witnesses``: one row for each process that executes steps, with what proves that it is alive."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class StoredWitness(Row, table=True):
    """A process and where its sign of life is kept: see ``paidonce_models.liveness``.

    ``worker`` is the owner of its leases. ``place`` names the host, its boot and its PID namespace: a process that
    shares it can ask the operating system about ``pid``, which started at ``started`` (in the kernel's own unit; empty
    if unknown). ``lock_key`` is the advisory lock that the process holds on the PostgreSQL server ``server``; NULL if
    there is none. ``member_of`` is the worker it belongs to: a prefork child's parent, else itself. ``died_at_us`` is
    when its death was first detected, ``held`` how many steps it held then.
    """

    __tablename__ = "witnesses"
    __table_args__ = (Index("ix_witnesses_place", "namespace", "place"),)

    worker: str = Field(primary_key=True, max_length=200)
    namespace: str = Field(max_length=100)
    member_of: str = Field(max_length=200)
    place: str = Field(max_length=200)
    pid: int
    started: str = Field(default="", max_length=40)
    lock_key: int | None = Field(default=None, sa_type=BigInteger)
    server: str | None = Field(default=None, max_length=100)
    since_us: int = Field(sa_type=BigInteger)
    seen_at_us: int = Field(sa_type=BigInteger)
    died_at_us: int | None = Field(default=None, sa_type=BigInteger)
    held: int = 0
