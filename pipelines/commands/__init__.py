"""The commands of the ``vqgan`` program: their flags, and the one function of ``pipelines`` that each calls.

Every start imports all of it, whatever the command: so at import time configurations and the standard library
alone, and what a command runs inside of the function that runs it. No work is done here.
"""
