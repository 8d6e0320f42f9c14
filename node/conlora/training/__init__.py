"""The trainer: a process of its own with torch, transformers and peft. `messages`, `channel`, `arena` and `process` are
also used by the daemon and import none of them.
"""
