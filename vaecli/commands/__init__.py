"""The verbs, one module each: `run(...)` does the work of one command.

`vaecli.cli` imports a module when its command is called.
"""
