"""What is known of the schema's versions without importing Alembic is what Alembic finds."""

from alembic.script import ScriptDirectory

from paidonce_models.database.migrating import migration_config
from paidonce_models.database.schema import head_revision
from paidonce_models.database.version_table import known_revisions


def test_known_revisions_and_the_head_are_those_that_alembic_finds() -> None:
    scripts = ScriptDirectory.from_config(migration_config())
    assert known_revisions() == {script.revision for script in scripts.walk_revisions()}
    assert scripts.get_heads() == [head_revision()]
