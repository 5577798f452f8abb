"""The program that runs inside a lab host's virtual machine: many small hosts, each a network namespace of its own.

Standard library only, Python 3.11 or newer, no asyncio: without hardware virtualization a request must cost few
instructions, or the measurement measures itself. `__main__` owns the control channel and one process per host;
`worker` is such a process with its command table; what is in between are the parts they are made of.
"""
