"""Tables of the job database, for SQLite and PostgreSQL. Times are Unix seconds."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

metadata = MetaData()

facts = Table(
    "farm_facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

wishlists = Table(
    "wishlists",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("repository", String(255), nullable=False),
    Column("user_name", Text, nullable=False),
    Column("output_format", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("applied_at", Double, nullable=False),
)

wishes = Table(
    "wishes",
    metadata,
    Column("wishlist", ForeignKey("wishlists.name", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("reference", Text, nullable=False),
    Column("registry", String(255), nullable=False),
    Column("image_repository", String(255), nullable=False),
    Index("wishes_by_repository", "image_repository"),
)

wish_terms = Table(  # of wishes whose terms are not the usual ones
    "wish_terms",
    metadata,
    Column("wishlist", String(255), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("policy", String(16), nullable=False),
    Column("platforms", Text, nullable=False),  # JSON
    ForeignKeyConstraint(["wishlist", "position"], ["wishes.wishlist", "wishes.position"], ondelete="CASCADE"),
)

images = Table(
    "images",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("repository", String(255), nullable=False),
    Column("name", String(1024), nullable=False),  # registry/repository:tag
    Column("reference", Text, nullable=False),  # the same with scheme and digest, as it was wished
    Column("registry", String(255), nullable=False),
    Column("image_repository", String(255), nullable=False),
    Column("wished", Boolean, nullable=False),
    Column("requested", Boolean, nullable=False),  # somebody asked for it (again) and the registry was not asked yet
    Column("digest", String(140)),  # what the registry said last
    Column("error", Text),  # why the registry could not say it
    Column("created_at", Double, nullable=False),
    Column("checked_at", Double),
    Column("published_digest", String(140)),
    Column("public_path", Text),
    Column("flat_path", Text),
    Column("revision", BigInteger),
    Column("published_at", Double),
    UniqueConstraint("repository", "name"),
    Index("images_by_repository", "registry", "image_repository"),
)

history = Table(
    "history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("image_id", ForeignKey("images.id", ondelete="CASCADE"), nullable=False),
    Column("digest", String(140), nullable=False),
    Column("seen_at", Double, nullable=False),
    Index("history_by_image", "image_id"),
)

vanished = Table(  # tags that their registry had once and has not now; what is published of them stays
    "vanished_tags",
    metadata,
    Column("image_id", ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("seen_at", Double, nullable=False),
)

image_terms = Table(  # what the wishes for an image come to; the usual ones if there is no row
    "image_terms",
    metadata,
    Column("image_id", ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("policy", String(16), nullable=False),
    Column("platforms", Text, nullable=False),  # JSON
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("image_id", ForeignKey("images.id", ondelete="CASCADE"), nullable=False),
    Column("digest", String(140), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("owner", Text),
    Column("heartbeat_at", Double),
    Column("error", Text),
    Column("transient", Boolean, nullable=False, default=False),
    Column("progress", Text),  # JSON
    Column("result", Text),  # JSON
    Column("created_at", Double, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("sent_at", Double),
    Column("next_try_at", Double),
    Column("started_at", Double),
    Column("finished_at", Double),
    UniqueConstraint("image_id", "digest"),
    Index("jobs_by_state", "state"),
)

hints = Table(
    "hints",
    metadata,
    Column("registry", String(255), primary_key=True),
    Column("image_repository", String(255), primary_key=True),
    Column("source", String(32), nullable=False),
    Column("received_at", Double, nullable=False),
)

sources = Table(
    "sources",
    metadata,
    Column("registry", String(255), primary_key=True),
    Column("image_repository", String(255), primary_key=True),
    Column("checked_at", Double, nullable=False),
    Column("read_at", Double),  # the last time that it could be read
    Column("error", Text),
)
