"""Launches ``vqgan tokenize`` from a Flex Template of Dataflow; docker/flex-template.json has its parameters.

The template's launcher calls this with the parameters and Beam's own flags, and with
``--template_location``, where it takes the job from once this has ended.
"""

import sys

from vqgan.__main__ import start

OURS = ("image_size", "slice_size", "batch_size", "input_kind", "folder_labels", "max_reject_rate")
"""Parameters whose flags have dashes: names of parameters may have none."""


def flags_of(arguments: list[str]) -> list[str]:
    """Returns the flags of ``vqgan tokenize`` and Beam for what the launcher gives."""
    flags = []
    for argument in arguments:
        name, is_given, value = argument.removeprefix("--").partition("=")
        if name in OURS:
            dashed = name.replace("_", "-")
            switches = {"true": [f"--{dashed}"], "false": [f"--no-{dashed}"]}
            flags += switches.get(value, [f"--{dashed}{is_given}{value}"])
        else:
            flags.append(argument)
    return flags


if __name__ == "__main__":
    sys.exit(start(["tokenize", *flags_of(sys.argv[1:])]))
