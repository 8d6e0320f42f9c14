"""The tests of ConLoRA."""
