"""The kill harness: real processes, killed at any moment, resumed, and compared bit for bit.

python -m tests.kills --kills 200       the long form: kills, signals, mutants, damages, determinism
"""
