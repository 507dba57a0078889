"""Text as a task: files, tokens, shards on disk, windows."""
