"""Whether Segue keeps its word while its processes are killed and stopped: see docs/steadfast.md.

history    what clients asked and were answered
checker    pure: which promises a history breaks
calls      one HTTP call, and how its outcome is noted
load       clients: they write events, read recommendations, block items and lift blocks
stage      a small catalogue with a release in a data folder
services   the `segue serve` processes, and everything that they started
faults     what is done to those
run        an hour, or a few seconds, of all of it
"""
