"""Stored teacher signals: what is kept of a distribution, its codec, shards, manifest, reader and writer."""
