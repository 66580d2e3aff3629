"""Where text comes from: files, buckets, prepared datasets, chats, a generated language, the embedded corpus."""
