"""`python -m coldpress`."""

from coldpress.cli import main

if __name__ == "__main__":
    main()
