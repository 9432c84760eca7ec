"""`python -m launcher`, the same as `mimo-launch`."""

from launcher.cli import entry

if __name__ == "__main__":
    entry()
