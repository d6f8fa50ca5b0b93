"""The command line: flags become a configuration, and one function carries it out.

Here are the commands, what they print, and the wiring of each run. What happens to data is in ``transforms``,
models are in ``vqgan``; neither imports this package.
"""
