"""Generated from proto/conlora/v1 by `make proto`; do not edit."""
