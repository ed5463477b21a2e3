"""``python -m metaseg_cli``."""

from metaseg_cli.cli import main

if __name__ == "__main__":
    main()
