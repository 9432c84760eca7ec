"""Executed by gpt.py in its own namespace: overrides its settings by `--name=value`."""

import sys
from ast import literal_eval

for word in sys.argv[1:]:
    name, _, text = word.removeprefix("--").partition("=")
    if name not in globals():
        raise ValueError(f"unknown setting {name}")
    value = literal_eval(text) if not isinstance(globals()[name], str) else text
    print(f"Overriding: {name} = {value}")
    globals()[name] = value
