"""The command line on the driver alone, `nvmefs VERB`; the verbs are in verbs.py.

cli      arguments, opening, printing
show     what a controller says, as plain values that print as text or JSON
devices  drivers of PCI functions: bind, unbind, the list of all controllers
doctor   what would fail here, and its cure
logs     log pages, from bytes to such values
perf     the measuring loop's Python half
"""
