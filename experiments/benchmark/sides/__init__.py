"""The sides of a comparison: programs that run rounds on request, each in a separate process.

A peer's program is started by its path under the interpreter of the peer's environment, and
imports only modules of this folder.
"""
