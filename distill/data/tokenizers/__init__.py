"""From text to token ids and back: bytes, tokenizer.json, SentencePiece, the tokenizer of a GGUF file."""
