"""The command `flowrl`: one file a command, and nothing heavy imported before a command runs."""
