"""The commands beside fit and validate: each module has `run(arguments)`, and imports what it needs when it runs."""
