"""The commands: options → configuration → session → screen → exit code. No torch, no algorithm."""
