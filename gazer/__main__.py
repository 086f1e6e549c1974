"""The `gazer` command, and `python -m gazer`.

A child that multiprocessing spawns imports the main module again, so this one is next to nothing:
the command line itself is imported inside `main`, which a child never calls.
"""

from __future__ import annotations


def main() -> int:
    """Run the `gazer` command with this process's arguments; the exit code."""
    from gazer.cli import main as command

    return command()


if __name__ == "__main__":
    raise SystemExit(main())
