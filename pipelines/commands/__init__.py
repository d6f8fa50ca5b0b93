"""The commands of the ``vqgan`` program, one file each: ``add`` adds its parser, which names what it runs.

Files are imported at every start, whatever the command, so they import what they run inside functions.
"""
