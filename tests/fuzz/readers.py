"""Every reader of ours that strangers' input reaches, by name."""

from tests.fuzz import flags, models, signals, tables, text

READERS = {reader.name: reader for room in (tables, flags, signals, models, text) for reader in room.READERS}
