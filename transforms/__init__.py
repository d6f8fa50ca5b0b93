"""What happens to data inside a pipeline: plain functions first, thin Beam transforms around them.

``sources`` and ``images`` make pixels; ``sharded`` is the mechanism of resumable jobs, and ``tokenizing``,
``decoding`` and ``sampling`` are those jobs. Flags, runners and the runs themselves are in ``pipelines``.
"""
