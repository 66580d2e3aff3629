"""Hard labels by generation: prompts -> the teacher's completions -> jsonl and a token store."""
