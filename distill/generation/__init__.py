"""Hard labels by generation: prompts -> the teacher's completions -> jsonl and a token store -> a student's lessons."""

# Each module imports only from those before it.
ORDER = ("config", "prompts", "journal", "lessons", "generate")
