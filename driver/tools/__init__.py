"""The command line on the driver alone: `nvmefs list|bind|unbind|id-ctrl|id-ns|smart-log|error-log|reset|perf`.

cli      arguments, opening, printing
show     what a controller says, as plain values that print as text or JSON
devices  drivers of PCI functions: bind, unbind, the list of all controllers
logs     log pages, from bytes to such values
perf     the measuring loop's Python half
"""
