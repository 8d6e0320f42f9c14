"""Federations on one machine: partition data, run N nodes as separate processes, compare rules, report."""
