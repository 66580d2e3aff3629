"""The token store, built once: documents encoded, split, cut into windows or packed, with checksums."""
