"""What can be set: settings of each run, declared once for the command line, for Python and for ``--config``.

Imported at every start, so configurations and the standard library alone. What a run does with its settings
is in its own module; which command takes them is in :mod:`pipelines.commands`.
"""
